# Builds the one binary, and puts it into a small image. On a Cloud TPU VM: docker run --privileged --net=host -v ~/models:/models ...
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
COPY tests tests
RUN cargo build --release --locked

FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/gemma-pjrt /usr/local/bin/gemma-pjrt
# Plugins, programs and downloaded models: keep them in a volume.
ENV XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface
VOLUME /cache
ENTRYPOINT ["gemma-pjrt"]
CMD ["--help"]
