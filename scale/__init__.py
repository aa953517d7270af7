"""More than one process or machine: data parallel training, the CUDA graph, sweeps."""
