# Vela's images, one per binary:
#
#   docker build --target pipeline --tag vela/pipeline .
#   docker build --target loader   --tag vela/loader .
#   docker build --target trainer  --tag vela/trainer .
#   docker build --target trainer-cuda --tag vela/trainer-cuda .
#
# All need BuildKit. The binaries are compiled together and once; dependencies stay in cache mounts between builds.

# The version that rust-toolchain.toml names, on the release of Debian that the images run.
ARG RUST_IMAGE=rust:1.95.0-slim-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim
# One release for both: a driver of CUDA 13.0 refuses what a newer compiler writes.
ARG CUDA_BUILD_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG CUDA_RUNTIME_IMAGE=nvidia/cuda:13.0.1-runtime-ubuntu24.04
# Where the binaries come from: the stage that compiles them, or an image that holds them in /out.
ARG BINARIES=builder

FROM ${RUST_IMAGE} AS toolchain

# The trainer for one kind of card. It needs the driver's library to start, so it is an image of its own.
FROM ${CUDA_BUILD_IMAGE} AS builder-cuda
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nasm \
    && rm -rf /var/lib/apt/lists/*
COPY --from=toolchain /usr/local/rustup /usr/local/rustup
COPY --from=toolchain /usr/local/cargo /usr/local/cargo
ENV CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup PATH=/usr/local/cargo/bin:$PATH
WORKDIR /src
COPY . .
# Compute capability without its point. There is no card to ask while an image is built.
ARG CUDA_COMPUTE_CAP=90
ARG JOBS=default
RUN --mount=type=cache,id=vela-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=vela-target-cuda,target=/src/target,sharing=locked \
    cargo build --locked --release --jobs "$JOBS" --package vela-train --bins --features cuda \
    && install -D --strip --target-directory /out target/release/trainer

FROM toolchain AS builder
# nasm assembles the vector code of libjpeg-turbo; without it pixels are the same and slower.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nasm \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# `release`, or `dev` for a quicker build of slower binaries.
ARG PROFILE=release
# Compilers at once: as many as there are cores, unless a number is given.
ARG JOBS=default
RUN --mount=type=cache,id=vela-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=vela-target,target=/src/target,sharing=locked \
    CARGO_HOME=/usr/local/cargo cargo build --locked --profile "$PROFILE" --jobs "$JOBS" \
        --package vela-prepare --package vela-loader --package vela-train --bins \
    && built="target/$(test "$PROFILE" = dev && echo debug || echo "$PROFILE")" \
    && install -D --strip --target-directory /out "$built/pipeline" "$built/loader" "$built/trainer"

FROM ${BINARIES} AS binaries

FROM ${RUNTIME_IMAGE} AS runtime
# Authorities for stores and loaders behind TLS.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 vela \
    && useradd --uid 10001 --gid vela --no-create-home --home-dir /var/lib/vela --shell /usr/sbin/nologin vela \
    # A new volume takes the owner of the folder that it is mounted on.
    && install --directory --owner vela --group vela /var/lib/vela /var/lib/vela/data /var/lib/vela/runs /var/lib/vela/cache
LABEL org.opencontainers.image.title="Vela" \
      org.opencontainers.image.description="Raw image-text data to shards, shards to batches over gRPC, batches to vision-language models" \
      org.opencontainers.image.licenses="Apache-2.0"
# Recipes and mixes name presets by paths relative to the repository, which lie here under the same names.
WORKDIR /opt/vela
ENV VELA_CACHE=/var/lib/vela/cache
USER 10001:10001
STOPSIGNAL SIGTERM

FROM runtime AS pipeline
COPY pipeline/configs pipeline/configs
COPY --from=binaries /out/pipeline /usr/local/bin/
ENTRYPOINT ["pipeline"]
CMD ["--help"]

FROM runtime AS loader
COPY --from=binaries /out/loader /usr/local/bin/
# gRPC, metrics.
EXPOSE 50051 9464
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["loader", "healthcheck", "--address", "127.0.0.1:50051"]
ENTRYPOINT ["loader"]
CMD ["serve", "--help"]

FROM runtime AS trainer
COPY trainer/configs trainer/configs
COPY --from=binaries /out/trainer /usr/local/bin/
ENTRYPOINT ["trainer"]
CMD ["--help"]

FROM ${CUDA_RUNTIME_IMAGE} AS trainer-cuda
RUN groupadd --gid 10001 vela \
    && useradd --uid 10001 --gid vela --no-create-home --home-dir /var/lib/vela --shell /usr/sbin/nologin vela \
    && install --directory --owner vela --group vela /var/lib/vela /var/lib/vela/data /var/lib/vela/runs /var/lib/vela/cache
WORKDIR /opt/vela
ENV VELA_CACHE=/var/lib/vela/cache
COPY trainer/configs trainer/configs
COPY --from=builder-cuda /out/trainer /usr/local/bin/
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["trainer"]
CMD ["--help"]
