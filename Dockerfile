# The images of both services: `docker build --target agreement-svc .` and `--target order-svc`.
# The classic builder and BuildKit both build it.

# Raised together with the toolchain that the checks run with; `rust-version` in Cargo.toml is the least.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libpq-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
# The dependencies first, with empty crates in place of the sources: a layer that stays as it is while only sources change.
COPY Cargo.toml Cargo.lock ./
COPY .cargo/config.toml .cargo/
COPY proto/Cargo.toml proto/
COPY client/Cargo.toml client/
COPY chassis/Cargo.toml chassis/
COPY agreement-svc/Cargo.toml agreement-svc/
COPY order-svc/Cargo.toml order-svc/
# Not built, but Cargo wants to see every member of the workspace.
COPY tests/Cargo.toml tests/
# Without the bundled libpq, the system's is linked, which speaks TLS to PostgreSQL.
ARG PROFILE=release
ENV BUILD="cargo build --profile $PROFILE --locked --no-default-features --package agreement-svc --package order-svc"
RUN for crate in proto client chassis agreement-svc order-svc tests; do mkdir $crate/src && touch $crate/src/lib.rs; done \
 && for program in proto/build.rs agreement-svc/src/main.rs order-svc/src/main.rs; do echo 'fn main() {}' > $program; done \
 && $BUILD
COPY proto proto
COPY client client
COPY chassis chassis
COPY agreement-svc agreement-svc
COPY order-svc order-svc
# For --version.
ARG COMMIT=unknown
# What was compiled of the empty crates is older than the sources only if these are touched.
RUN find proto client chassis agreement-svc order-svc -name '*.rs' -exec touch {} + \
 && GIT_COMMIT=$COMMIT $BUILD \
 && cp target/*/agreement-svc target/*/order-svc /usr/local/bin/

FROM debian:bookworm-slim AS runtime
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates libpq5 \
 && rm -rf /var/lib/apt/lists/*
LABEL org.opencontainers.image.licenses="MIT"
# Numeric, so that an orchestrator can see that it is not root. It owns no file of the image.
USER 10001:10001

FROM runtime AS agreement-svc
ARG VERSION=0.1.0
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="agreement-svc" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT" \
      org.opencontainers.image.description="Owns attestations and direct-sign status, and answers the gate."
COPY --from=build /usr/local/bin/agreement-svc /usr/local/bin/
EXPOSE 50051 9464
ENTRYPOINT ["agreement-svc"]
CMD ["serve"]

# Makes the secrets of a development stack; see deploy/secrets/make.
FROM agreement-svc AS secrets
USER 0
RUN apt-get update \
 && apt-get install --yes --no-install-recommends openssl \
 && rm -rf /var/lib/apt/lists/*
COPY deploy/secrets/make /usr/local/bin/make-secrets
ENTRYPOINT ["make-secrets"]
CMD []

FROM runtime AS order-svc
ARG VERSION=0.1.0
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="order-svc" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT" \
      org.opencontainers.image.description="Accepts purchases and seat changes once the gate allows them."
COPY --from=build /usr/local/bin/order-svc /usr/local/bin/
EXPOSE 50052 9464
ENTRYPOINT ["order-svc"]
CMD ["serve"]
