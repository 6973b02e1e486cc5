# `make` alone lists what there is. Everything that is built goes to bin/.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO            ?= go
BIN           := bin/platform
PACKAGES      ?= ./...
# Go modules beside the product's own; what looks at all packages looks at theirs too.
MODULES       := bench compose/standin
WORKSHOP      := $(if $(filter ./...,$(PACKAGES)),$(MODULES))
# Longest run of the tests of one package.
TEST_TIMEOUT  ?= 10m
# Time for each fuzz target, and for each benchmark.
FUZZTIME      ?= 10s
BENCHTIME     ?= 1s
# For make bench, such as -rounds 1 -only mqtt,stock.
BENCHFLAGS    ?=
GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT := bin/tools/golangci-lint-$(GOLANGCI_LINT_VERSION)
GOVULNCHECK_VERSION := v1.9.0
GOVULNCHECK   := bin/tools/govulncheck-$(GOVULNCHECK_VERSION)
# Finds Docker Compose, or builds it. COMPOSE_ENV_FILES may name a file with other images and ports.
COMPOSE       ?= scripts/compose.sh
SKELETON      := $(COMPOSE) -f compose/docker-compose.yaml
# PUBLIC=1 publishes HTTP and MQTT beyond loopback, with tokens and passwords.
FULLSTACK     := $(SKELETON) -f compose/docker-compose.fullstack.yaml $(if $(PUBLIC),-f compose/docker-compose.public.yaml)
# What fullstack-up runs as the platform. Unless it is set, it is built from this source.
PLATFORM_IMAGE ?=

# Git may be missing, as in a source archive.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  ?= $(shell git rev-parse --short=12 --verify HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

# Runs a command in each module of the workshop.
in_workshop = for module in $(WORKSHOP); do echo "$$module: $(1)"; (cd "$$module" && $(1)) || exit 1; done

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z][a-z0-9-]*:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Run

.PHONY: dev
dev: build ## Run everything on this machine, without containers (DATA_DIR, FRESH=1; other settings: bin/platform dev --help)
	@$(BIN) dev

.PHONY: skeleton-up
skeleton-up: build ## Start Postgres, Redpanda and its console in containers, for bin/platform run
	@if ! $(SKELETON) up --detach --wait; then \
		echo "skeleton-up: not everything came up; the log of what is not healthy follows" >&2; \
		scripts/compose-logs.sh $(SKELETON) >&2; \
		exit 1; \
	fi
	@printf '%s\n' \
		'PostgreSQL         postgres://cornjacket:cornjacket@localhost:5432/cornjacket' \
		'Redpanda           localhost:9092 (Kafka API), http://localhost:9644 (admin API)' \
		'Redpanda Console   http://localhost:8088' \
		'' \
		'Next: make skeleton-run, which is' \
		'    $(BIN) run --embedded-mqtt' \
		'It listens on mqtt://localhost:1883, http://localhost:8080 (ingestion) and http://localhost:8081 (query).'

.PHONY: skeleton-run
skeleton-run: build ## Run the platform on what skeleton-up started
	@$(BIN) run --embedded-mqtt

.PHONY: skeleton-down
skeleton-down: ## Stop the containers and keep their data (with VOLUMES=1: delete it)
	@$(SKELETON) down $(if $(VOLUMES),--volumes)

.PHONY: image
image: ## Build the platform's container image, cornjacket/platform:latest
	@docker build --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) --tag cornjacket/platform:latest .

.PHONY: fullstack-up
fullstack-up: $(if $(PLATFORM_IMAGE),,image) ## Start everything in containers: the platform, its gateway and broker too
	@if ! $(FULLSTACK) up --detach --wait; then \
		echo "fullstack-up: not everything came up; the log of what is not healthy follows" >&2; \
		scripts/compose-logs.sh $(FULLSTACK) >&2; \
		exit 1; \
	fi
	@printf '%s\n' \
		'HTTP               http://localhost/api/v1/events, http://localhost/api/v1/projections/sensor_state' \
		'MQTT               mqtt://localhost:1883' \
		'Health             http://localhost:8080/health (ingestion), :8081 (query), :8084 (event handler), :8086 (relay)' \
		'Traefik            http://localhost:8180/dashboard/' \
		'EMQX               http://localhost:18083 (admin, EMQX_DASHBOARD_PASSWORD or cornjacket)' \
		'Redpanda Console   http://localhost:8088' \
		'PostgreSQL         postgres://cornjacket:cornjacket@localhost:5432/cornjacket' \
		'Redpanda           localhost:9092 (Kafka API), http://localhost:9644 (admin API)'

.PHONY: fullstack-down
fullstack-down: ## Stop all containers and keep their data (with VOLUMES=1: delete it)
	@$(FULLSTACK) down $(if $(VOLUMES),--volumes)

.PHONY: migrate-all
migrate-all: build ## Bring the databases of all services up to date (with RESET=1: delete all data first)
	@$(BIN) migrate $(if $(RESET),reset --yes,up)

##@ Build and check

.PHONY: build
build: ## Build bin/platform
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/platform

.PHONY: check
check: fmt-check vet lint vulncheck test ## All that must be right before a change goes in: format, vet, lint, vulncheck, test

.PHONY: fmt
fmt: ## Format the Go files
	@gofmt -w .

.PHONY: fmt-check
fmt-check: ## Name the Go files that are not formatted
	@unformatted=$$(gofmt -l .); \
	if [[ -n $$unformatted ]]; then \
		echo "not formatted (make fmt):"; echo "$$unformatted"; exit 1; \
	fi

.PHONY: vet
vet: ## Run go vet
	$(GO) vet $(PACKAGES)
	@$(call in_workshop,$(GO) vet ./...)

.PHONY: tidy
tidy: ## Run go mod tidy in each module
	$(GO) mod tidy
	@for module in $(MODULES); do $(GO) -C "$$module" mod tidy; done

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Run golangci-lint
	$(GOLANGCI_LINT) run $(PACKAGES)
	@$(call in_workshop,$(CURDIR)/$(GOLANGCI_LINT) run ./...)

$(GOLANGCI_LINT):
	@echo "building golangci-lint $(GOLANGCI_LINT_VERSION) into bin/tools, once; takes some minutes"
	@GOBIN=$(CURDIR)/bin/tools $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	@mv bin/tools/golangci-lint $@

.PHONY: vulncheck
vulncheck: $(GOVULNCHECK) ## Look for known vulnerabilities in what is called (VULNCHECK=required: fail without the database)
	@scripts/vulncheck.sh $(GOVULNCHECK) $(PACKAGES)
	@for module in $(WORKSHOP); do scripts/vulncheck.sh $(GOVULNCHECK) -C "$$module" ./...; done

$(GOVULNCHECK):
	@GOBIN=$(CURDIR)/bin/tools $(GO) install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
	@mv bin/tools/govulncheck $@

##@ Test

.PHONY: setup
setup: ## Install what the tests need beside Go: PostgreSQL, Mosquitto, kcat
	@scripts/setup.sh

.PHONY: test
test: setup ## Run all tests with the race detector
	$(GO) test -race -shuffle=on -timeout $(TEST_TIMEOUT) $(PACKAGES)
	@$(call in_workshop,$(GO) test -race -shuffle=on -timeout $(TEST_TIMEOUT) ./...)

.PHONY: test-short
test-short: ## Run the tests that are quick, without the race detector; under 2 minutes
	$(GO) test -short -parallel 4 -timeout $(TEST_TIMEOUT) $(PACKAGES)
	@$(call in_workshop,$(GO) test -short -timeout $(TEST_TIMEOUT) ./...)

.PHONY: e2e-faults
e2e-faults: setup ## Kill, freeze and starve the platform and all it needs, under load; some 8 minutes (E2E_FAULTS_SEED repeats a run)
	E2E_FAULTS=full $(GO) test -race -count=1 -v -timeout 30m -run '^TestFault' ./e2e

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: ## Measure the platform against stock Watermill and the database; some 20 minutes (BENCHFLAGS=-help)
	@$(GO) -C bench build -o ../bin/bench .
	@bin/bench $(BENCHFLAGS)

.PHONY: bench-micro
bench-micro: ## Run the benchmarks of the packages, each for BENCHTIME
	$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -timeout 30m $(PACKAGES)

.PHONY: e2e-skeleton
e2e-skeleton: ## Test the platform that is running (skeleton-up and skeleton-run, or dev) from outside
	E2E_LIVE=1 $(GO) test -count=1 -timeout 15m ./e2e/...

.PHONY: e2e-fullstack
e2e-fullstack: ## Test what fullstack-up has started from outside: through the gateway and MQTT
	E2E_LIVE=1 E2E_GATEWAY_URL=http://127.0.0.1 $(GO) test -count=1 -timeout 15m ./e2e/...

.PHONY: compose-test
compose-test: ## Test the containers: all of fullstack mode with stand-ins for what can't be pulled; some 4 minutes
	@scripts/compose-test.sh

.PHONY: clean
clean: ## Delete what was built, but not the tools
	@rm -rf $(BIN) bin/bench coverage.out
	@$(GO) clean -testcache
