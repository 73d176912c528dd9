# The packages of envs/requirements.lock and atomloom, for any user and a read-only root file system:
#   docker build -t atomloom .
#   docker run --rm --read-only --tmpfs /tmp --user "$(id -u):$(id -g)" -v "$PWD:/work" atomloom snakemake --configfile mine.yaml
# TORCH chooses the build of PyTorch, as for make: docs/installing.md.
FROM python:3.11-slim-bookworm
ARG TORCH=""
COPY envs/requirements.lock /opt/atomloom/requirements.lock
RUN PIP_EXTRA_INDEX_URL="$TORCH" pip install --no-cache-dir -r /opt/atomloom/requirements.lock ${TORCH:+"$(grep '^torch==' /opt/atomloom/requirements.lock)+${TORCH##*/}"}
COPY setup.py pyproject.toml README.md LICENSE Snakefile /opt/atomloom/source/
COPY workflow /opt/atomloom/source/workflow
COPY envs /opt/atomloom/source/envs
COPY profiles /opt/atomloom/source/profiles
COPY config /opt/atomloom/source/config
COPY resources /opt/atomloom/source/resources
RUN pip install --no-cache-dir --no-deps --no-build-isolation /opt/atomloom/source && rm -r /opt/atomloom/source
# Caches of libraries go where everybody may write.
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib NUMBA_CACHE_DIR=/tmp/numba PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
WORKDIR /work
CMD ["atomloom", "--help"]
