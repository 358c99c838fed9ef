# Images made of Debian packages and PyPI alone, under which docker-compose.yml runs without a registry.
FROM debian:bookworm-slim AS debian
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*

# In place of the official Rust image: the newest compiler of Debian's security archive.
FROM debian AS toolchain
RUN apt-get update \
    && apt-get install --yes --no-install-recommends rustc-web cargo-web gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# In place of RustFS: an S3 server in Python that keeps objects in memory and checks no signature.
FROM debian AS store
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/moto \
    && PIP_CERT=/etc/ssl/certs/ca-certificates.crt /opt/moto/bin/pip install --no-cache-dir 'moto[s3,server]==5.2.5'
ENV PATH=/opt/moto/bin:$PATH
# A volume takes the owner of the folder that it is mounted on.
RUN install --directory --owner 10001 --group 10001 /data

FROM debian AS rclone
RUN apt-get update \
    && apt-get install --yes --no-install-recommends rclone \
    && rm -rf /var/lib/apt/lists/*
ENTRYPOINT ["rclone"]

FROM debian AS prometheus
RUN apt-get update \
    && apt-get install --yes --no-install-recommends prometheus \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner 65534 --group 65534 /prometheus
ENTRYPOINT ["prometheus"]
