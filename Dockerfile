# CPU:  docker build -t replicate .
# CUDA: docker build -t replicate --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
# TORCH_INDEX: the index of the torch build that you want, such as the one of CPU builds; empty: pip's own.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}
ARG TORCH_INDEX=""

ENV DVC_NO_ANALYTICS=1 PIP_NO_CACHE_DIR=1
RUN export DEBIAN_FRONTEND=noninteractive && apt-get update \
 && (command -v python3 >/dev/null || apt-get install -y --no-install-recommends python3 python3-dev) \
 && (python3 -c "import ensurepip" 2>/dev/null || apt-get install -y --no-install-recommends python3-venv) \
 && apt-get install -y --no-install-recommends g++ git libjpeg-dev libopencv-dev make pkg-config \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /workbook
COPY . .
ENV VIRTUAL_ENV=/venv PATH=/venv/bin:$PATH
RUN make setup VENV=/venv TORCH_INDEX="${TORCH_INDEX}"

EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--allow-root", "--MultiKernelManager.default_kernel_name=replicate"]
