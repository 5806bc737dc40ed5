# What `make run` does, as an ordinary user on a CPU:
#
#   docker build -t recbole_mm .
#   docker run --rm -v "$PWD/saved:/home/user/recbole_mm/saved" recbole_mm
#   docker run --rm recbole_mm .venv/bin/recbole-mm models
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user

USER user
WORKDIR /home/user/recbole_mm

# A layer for what is installed: it is made anew where versions change, not where the code does.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1 RAY_USAGE_STATS_ENABLED=0
COPY --chown=user Makefile setup.py pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=user properties properties
COPY --chown=user recbole_mm recbole_mm
RUN make .venv/.ready

COPY --chown=user . .
RUN touch .venv/.ready && mkdir -p saved dataset

CMD ["make", "run"]
