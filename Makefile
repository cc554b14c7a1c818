# Targets install what is missing, Rust included (Debian and Ubuntu; hack/need.sh, hack/rust.sh).

DESTDIR =
BINDIR = /opt/cni/bin
# For `weft install`, such as --replace-foreign.
INSTALLFLAGS =

.PHONY: all install demo test soak bench fresh msrv check dependencies lint clean

all:
	hack/build.sh

# The executable under each of its names.
install:
	hack/install.sh "$(DESTDIR)$(BINDIR)" $(INSTALLFLAGS)

# The lesson on this machine: nodes, router and pods in namespaces.
# STEP=n shows one step.
demo:
	hack/need.sh demo
	hack/cargo.sh run --quiet --package e2e --bin lab -- demo $(STEP)

test:
	hack/need.sh test
	hack/lint.sh tools
	hack/test.sh

# Long runs at full count.
soak:
	hack/need.sh test
	hack/lint.sh tools
	WEFT_SOAK=1 hack/test.sh

# Measure what a pod costs, beside the reference plugins. BENCH=help lists parts and options.
bench:
	hack/need.sh bench
	hack/cargo.sh run --quiet --release --package e2e --bin bench -- $(BENCH)

# The README's commands in minimal systems with nothing but git and make.
# SUITES="bookworm trixie"; noble needs MIRROR.
fresh:
	hack/fresh.sh $(SUITES)

# The whole workspace with the oldest Rust that is supported.
msrv:
	hack/msrv.sh

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# Licences, advisories and sources of the dependencies, and whether all are used.
dependencies:
	hack/dependencies.sh

# Shell scripts, workflows and manifests; make test does the same.
lint:
	hack/need.sh lint
	hack/lint.sh

clean:
	cargo clean
