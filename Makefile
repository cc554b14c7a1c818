# Targets install what they lack themselves (Debian and Ubuntu; see hack/need.sh).

DESTDIR =
BINDIR = /opt/cni/bin
# For `weft install`, such as --replace-foreign.
INSTALLFLAGS =

.PHONY: all install demo test soak bench check clean

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
	hack/need.sh iproute2 tcpdump iputils-ping nftables iperf3 jq containernetworking-plugins strace bird2 frr podman runc iptables busybox-static golang-go golang-github-appc-cni-dev binutils
	hack/cargo.sh test --workspace

# Long runs at full count.
soak:
	hack/need.sh iproute2 tcpdump iputils-ping nftables iperf3 jq containernetworking-plugins strace bird2 frr podman runc iptables busybox-static golang-go golang-github-appc-cni-dev binutils
	WEFT_SOAK=1 hack/cargo.sh test --workspace

# What a pod costs, beside the reference plugins. BENCH="--full --write docs/performance.md"
# makes the run that the documentation holds; BENCH=help lists parts and options.
bench:
	hack/need.sh iproute2 iptables containernetworking-plugins iperf3 ethtool
	hack/cargo.sh run --quiet --release --package e2e --bin bench -- $(BENCH)

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

clean:
	cargo clean
