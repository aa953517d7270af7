# docker build -t hdreamer .
# docker run --rm -it --shm-size 1g -v "$PWD/logdir:/hdreamer/logdir" hdreamer python dreamer.py --configs defaults hdreamer --task atari_pong
# With a GPU: docker run --gpus all ...
FROM python:3.11-slim-bookworm

# A compiler for --compile true and for packages without wheels; what MuJoCo needs to draw without a screen (dmc, memorymaze, metaworld).
RUN apt-get update && apt-get install -y --no-install-recommends g++ libegl1 libgl1 && rm -rf /var/lib/apt/lists/*

WORKDIR /hdreamer

# Packages first, so that a change of the code does not install them anew. SUITES: files of requirements/, as in
# docker build --build-arg SUITES="dmc crafter" -t hdreamer .
COPY requirements.txt ./
COPY requirements ./requirements
RUN pip install --no-cache-dir -r requirements.txt
ARG SUITES=""
RUN for suite in $SUITES; do pip install --no-cache-dir -r "requirements/$suite.txt"; done

COPY . .
CMD ["python", "dreamer.py", "--help"]
