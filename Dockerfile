# Build and run:
# docker build -t hdreamer .
# docker run --rm -it --shm-size 1g -v "$PWD/logdir:/hdreamer/logdir" hdreamer python dreamer.py --configs defaults hdreamer --task atari_pong
# For a GPU add --gpus all to docker run.
FROM python:3.11-slim-bookworm

# g++: for --compile true and for packages without wheels. EGL and GL: MuJoCo rendering without a display
# (dmc, memorymaze, metaworld).
RUN apt-get update && apt-get install -y --no-install-recommends g++ libegl1 libgl1 && rm -rf /var/lib/apt/lists/*

WORKDIR /hdreamer

# Packages come before the code, so that a change of the code does not reinstall them.
# SUITES lists files of requirements/:
# docker build --build-arg SUITES="dmc crafter" -t hdreamer .
COPY requirements.txt ./
COPY requirements ./requirements
RUN pip install --no-cache-dir -r requirements.txt
ARG SUITES=""
RUN for suite in $SUITES; do pip install --no-cache-dir -r "requirements/$suite.txt"; done

COPY . .
CMD ["python", "dreamer.py", "--help"]
