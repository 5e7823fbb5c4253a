# Everything that continuous integration does, a developer can do with one of these.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The packages whose tests take longest begin first: the others fit beside them.
PKG ?= ./server ./ra ./test/interop ./ca ./mqtt ./broker ./...
FUZZTIME ?= 10s
BENCHFLAGS ?=
# Tests wait for clocks, databases and foreign programs more than they compute.
JOBS ?= $(shell echo $$((2 * $$(getconf _NPROCESSORS_ONLN))))
TOOL := go tool -modfile=tools/go.mod

.PHONY: help build test race cover lint vuln check fuzz demo bench latest notes

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the programs into bin/
	CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/...

test: ## Run all tests; name what was skipped (COUNTERSIGN_REQUIRE_PEERS=1 refuses skips)
	go run ./test/gotest -p $(JOBS) -timeout 15m $(PKG)

race: ## Run all tests under the race detector (needs a C compiler)
	go run ./test/gotest -timeout 30m -race $(PKG)

cover: ## Run all tests and say what they cover, by function in coverage.txt
	go run ./test/gotest -timeout 15m -coverpkg=./... -coverprofile=coverage.out $(PKG)
	go tool cover -func=coverage.out > coverage.txt
	@tail -n 1 coverage.txt

lint: ## Check form and common mistakes (the first run builds the linter: a minute or two)
	$(TOOL) golangci-lint fmt --diff
	go vet ./...
	$(TOOL) golangci-lint run

vuln: ## Look for known vulnerabilities in the code that we call
	@out=$$($(TOOL) govulncheck ./... 2>&1) && rc=0 || rc=$$?; echo "$$out"; \
	if [ "$$rc" != 0 ] && grep -q 'fetching vulnerabilities' <<<"$$out"; then \
	  echo 'vuln: NOT CHECKED: the vulnerability database could not be reached'; \
	  [ -n "$${CI:-}" ] || rc=0; \
	fi; exit $$rc

check: lint race vuln ## All that must hold before a change goes in
	go mod tidy -diff
	go -C tools mod tidy -diff

fuzz: ## Fuzz each target for FUZZTIME (10s) in turn
	@grep -rnoE '^func Fuzz[A-Za-z0-9_]+' --include='*_test.go' . | sort \
	| sed -E 's|^(.*)/[^/]+:[0-9]+:func (Fuzz.*)$$|\1 \2|' \
	| while read -r dir name; do \
	    echo "== $$dir $$name"; \
	    go test -run='^$$' -fuzz="^$$name\$$" -fuzztime='$(FUZZTIME)' "$$dir" </dev/null; \
	  done

demo: ## Watch the whole life of 25 devices in half a minute
	go run ./cmd/countersign demo

bench: ## Measure speed beside the limits of this machine and the peers (BENCHFLAGS)
	go run ./test/bench $(BENCHFLAGS)

latest: ## Try all tests with each dependency at its latest version, in a copy
	@copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	git ls-files -z | xargs -0 cp -a --parents -t "$$copy"; cd "$$copy"; \
	go get -u -t ./...; go mod tidy; \
	git --no-pager diff --no-index "$(CURDIR)/go.mod" go.mod || true; \
	$(MAKE) test

notes: ## Print the newest section of the CHANGELOG, as the notes of a release
	@awk '/^## / { if (seen++) exit } seen' CHANGELOG.md
