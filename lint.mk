# make lint checks the Go code (.golangci.yml says what), make fmt formats it, and make vuln
# looks for known vulnerabilities in it and in what it uses.

GOLANGCI_VERSION    := v2.15.0
GOVULNCHECK_VERSION := v1.9.0
GOLANGCI            := bin/golangci-lint-$(GOLANGCI_VERSION)

.PHONY: lint fmt vuln

lint: $(GOLANGCI)
	$(GOLANGCI) run --allow-parallel-runners ./...

fmt: $(GOLANGCI)
	$(GOLANGCI) fmt

# Built once for each version, from the module proxy. That takes two minutes and a half of
# processor time.
$(GOLANGCI):
	@mkdir -p $(dir $@)
	@echo "lint: building golangci-lint $(GOLANGCI_VERSION) (once; a few minutes)"
	@tmp=$$(mktemp -d bin/.golangci-XXXXXX); trap 'rm -rf "$$tmp"' EXIT; \
	  CGO_ENABLED=0 GOBIN=$$(realpath "$$tmp") $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION); \
	  mv "$$tmp/golangci-lint" $@

# The database of vulnerabilities is not in the module proxy. Where it cannot be reached
# nothing is checked. That is said, and it is no failure of the code.
vuln:
	@errs=$$(mktemp); trap 'rm -f "$$errs"' EXIT; \
	$(GO) run golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION) ./... 2>"$$errs" && status=0 || status=$$?; \
	cat "$$errs" >&2; \
	if [ $$status != 0 ] && grep -q '^govulncheck: fetching vulnerabilities:' "$$errs"; then \
	  echo "vuln: NOT CHECKED: the database of vulnerabilities cannot be reached from here"; status=0; \
	fi; \
	exit $$status
