# The tested versions and this checkout, for a CPU, an NVIDIA GPU or a TPU:
#
#   docker build --build-arg ACCELERATOR=cuda --tag quecc_jax .
#   docker run --gpus all --volume "$PWD/runs:/quecc_jax/runs" quecc_jax train configs/llava_7b_stage1.py
#
# A TPU host runs it with --privileged --network host. CUDA itself comes with jax; the host has the driver.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# cpu, cuda or tpu
ARG ACCELERATOR=cpu

WORKDIR /quecc_jax

# Apart from the code, so that a change of it installs nothing again.
COPY requirements.txt ./
COPY requirements/cuda.txt requirements/tpu.txt requirements/
RUN case "$ACCELERATOR" in \
      cpu) file=requirements.txt ;; \
      cuda | tpu) file="requirements/$ACCELERATOR.txt" ;; \
      *) echo "ACCELERATOR is $ACCELERATOR; choose cpu, cuda or tpu" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir --requirement "$file"

COPY . .
RUN pip install --no-cache-dir --no-deps --editable .

ENTRYPOINT ["quecc"]
CMD ["--help"]
