# Targets install what they lack themselves (Debian and Ubuntu; see hack/need.sh).

# What the tests run beside weft.
TEST_PACKAGES = iproute2 nftables iptables tcpdump iputils-ping iperf3 jq strace systemd bird2 frr \
	containernetworking-plugins containerd runc podman busybox-static \
	golang-go golang-github-appc-cni-dev binutils shellcheck python3-venv

DESTDIR =
BINDIR = /opt/cni/bin
# For `weft install`, such as --replace-foreign.
INSTALLFLAGS =

.PHONY: all install demo test soak bench check lint clean

all:
	hack/build.sh

# The executable under each of its names; nothing else.
install:
	hack/install.sh "$(DESTDIR)$(BINDIR)" $(INSTALLFLAGS)

# The lesson on this machine: nodes, router and pods in namespaces.
# STEP=n shows one step.
demo:
	hack/need.sh iproute2 tcpdump iputils-ping bird2 frr iperf3
	hack/cargo.sh run --quiet --package e2e --bin lab -- demo $(STEP)

test:
	hack/need.sh $(TEST_PACKAGES)
	hack/lint.sh tools
	hack/cargo.sh test --workspace

# Long runs at full count.
soak:
	hack/need.sh $(TEST_PACKAGES)
	hack/lint.sh tools
	WEFT_SOAK=1 hack/cargo.sh test --workspace

# What a pod costs, beside the reference plugins. docs/performance.md says which runs it
# holds; BENCH=help lists parts and options.
bench:
	hack/need.sh iproute2 iptables containernetworking-plugins iperf3 ethtool
	hack/cargo.sh run --quiet --release --package e2e --bin bench -- $(BENCH)

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# Shell scripts, workflows and manifests; make test does the same.
lint:
	hack/need.sh shellcheck python3-venv
	hack/lint.sh

clean:
	cargo clean
