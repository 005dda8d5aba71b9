# One image for TPU VMs, GPUs and CPUs:
#   docker build --build-arg EXTRA=tpu -t qempo .      # tpu, cuda, or nothing for CPUs
FROM python:3.11-slim
ARG EXTRA=""
WORKDIR /app
COPY setup.py pyproject.toml README.md LICENSE ./
COPY qempo_jax qempo_jax
COPY configs configs
COPY experiments experiments
RUN pip install --no-cache-dir ".[train,convert,eval,data,math${EXTRA:+,$EXTRA}]"
ENTRYPOINT ["python", "-m"]
CMD ["experiments.train", "--help"]
