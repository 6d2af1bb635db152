# The CPU build with what training needs; `docker build -t sb3_pmpo .`
#   docker run --rm -v "$PWD/logs:/sb3_pmpo/logs" sb3_pmpo make train
#   docker run --rm sb3_pmpo make test
#   docker run --rm -v "$PWD/logs:/sb3_pmpo/logs" -e MUJOCO_GL=egl sb3_pmpo \
#       sb3-pmpo record --env dm_control/cartpole-swingup-v0
FROM python:3.12-slim

# EGL with Mesa's software renderer, for videos without a screen.
RUN apt-get update \
    && apt-get install -y --no-install-recommends make libegl1 libgl1 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/*

ENV VENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    TORCH_INDEX=https://download.pytorch.org/whl/cpu \
    MUJOCO_GL=disabled \
    OMP_NUM_THREADS=1

WORKDIR /sb3_pmpo
COPY . .
RUN make /opt/venv/.installed-train

CMD ["make", "train"]
