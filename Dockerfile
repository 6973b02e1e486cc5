# The platform as a container: one static binary, no shell, not root. Reproducible: the same sources, version and Go give
# the same binary (-trimpath, no build ID, no time stamps).
#
#   docker build --build-arg VERSION=$(git describe --tags --always) --build-arg COMMIT=$(git rev-parse --short=12 HEAD) -t cornjacket/platform .
ARG GO_IMAGE=golang:1.26-alpine
ARG BASE_IMAGE=gcr.io/distroless/static-debian13:nonroot

FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=devel
ARG COMMIT=unknown
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false \
    -ldflags "-s -w -buildid= -X main.version=${VERSION} -X main.commit=${COMMIT}" -o /platform ./cmd/platform

FROM ${BASE_IMAGE}
COPY --from=build /platform /platform
# By number, so that it holds for bases without a user list.
USER 65532:65532
# A port published by the engine comes in on the container's own address, not on loopback.
ENV INGESTION_ADDR=0.0.0.0:8080 \
    QUERY_ADDR=0.0.0.0:8081 \
    ACTIONS_ADDR=0.0.0.0:8082 \
    ACTIONS_HEALTH_ADDR=0.0.0.0:8083 \
    EVENTHANDLER_HEALTH_ADDR=0.0.0.0:8084 \
    TSDB_HEALTH_ADDR=0.0.0.0:8085 \
    RELAY_HEALTH_ADDR=0.0.0.0:8086 \
    INFERENCE_HEALTH_ADDR=0.0.0.0:8087
EXPOSE 8080-8087
HEALTHCHECK --interval=5s --timeout=6s --start-period=60s --retries=6 CMD ["/platform", "health"]
ENTRYPOINT ["/platform"]
CMD ["run"]
