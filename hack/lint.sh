#!/bin/sh
# Checks what no compiler sees.
#
# usage: lint.sh [shell | workflows [FILE...] | manifests [FILE...] | tools]
#
# All three checks by default:
#
# shell      every shell script, and the run blocks of workflows, by shellcheck
# workflows  .github/workflows, or FILEs, by actionlint
# manifests  conf/kubernetes and hack/*.yaml, or FILEs, by the schemas of Kubernetes
#
# tools      only gets the tools, while there is a network
#
# Exits with 77 if a tool cannot be installed: no pip, no Go, or no package index. Tools
# are kept in target/lint.
set -eu
cd "$(dirname "$0")/.."
tools=${CARGO_TARGET_DIR:-target}/lint
unavailable=77
# The oldest and the newest whose schemas there are and that the manifests are for.
kubernetes_versions='1.25 1.37'

# have DIR MARK COMMAND...: DIR made by the command, once and whole; MARK tells versions.
have() {
	directory=$1 mark=$2
	shift 2
	mkdir -p "$tools"
	(
		flock 9
		[ "$(cat "$directory/.mark" 2>/dev/null)" != "$mark" ] || exit 0
		rm -rf "$directory"
		"$@" "$directory" >&2 || exit 1
		echo "$mark" >"$directory/.mark"
	) 9>"$tools/lock"
}

make_python() {
	python3 -m venv "$1" && "$1/bin/pip" install --quiet --disable-pip-version-check \
		--retries 1 --timeout 15 kubernetes-validate==1.37.0
}

have_python() {
	have "$tools/python" kubernetes-validate-1.37.0 make_python || {
		echo "lint.sh: NOT CHECKED: cannot install kubernetes-validate (python3-venv)" >&2
		return $unavailable
	}
}

# Go puts what it builds in DIR; its caches go with the compiler's own.
make_actionlint() {
	GOBIN=$(realpath --canonicalize-missing "$1") GOFLAGS=-buildvcs=false \
		go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.7
}

have_actionlint() {
	have "$tools/actionlint" 1.7.7 make_actionlint || {
		echo "lint.sh: NOT CHECKED: cannot build actionlint (golang-go)" >&2
		return $unavailable
	}
}

# The run blocks of workflows as shell scripts in a directory; an expression becomes a word.
RUN_BLOCKS='
import pathlib, re, sys, yaml
out = pathlib.Path(sys.argv[1])
for path in sys.argv[2:]:
    for name, job in yaml.safe_load(open(path))["jobs"].items():
        for number, step in enumerate(job["steps"]):
            if "run" in step:
                text = re.sub(r"\$\{\{.*?\}\}", "expression", step["run"])
                block = out / f"{pathlib.Path(path).stem}-{name}-{number}.sh"
                block.write_text("#!/bin/bash -e\n" + text + "\n")
'

shell() {
	shellcheck --external-sources .ci/run hack/*.sh conf/kubernetes/*.sh
	blocks=$(mktemp -d)
	trap 'rm -rf "$blocks"' EXIT
	have_python
	"$tools/python/bin/python" -c "$RUN_BLOCKS" "$blocks" .github/workflows/*.yml
	shellcheck "$blocks"/*.sh
	echo "lint.sh: shell: clean"
}

workflows() {
	[ $# -gt 0 ] || set -- .github/workflows/*.yml
	have_actionlint
	"$tools/actionlint/actionlint" "$@"
}

manifests() {
	[ $# -gt 0 ] || set -- conf/kubernetes/*.yaml hack/*.yaml
	have_python
	for version in $kubernetes_versions; do
		"$tools/python/bin/python" -m kubernetes_validate --strict --kubernetes-version "$version" "$@"
	done
}

case ${1-} in
'')
	hack/lint.sh shell
	hack/lint.sh workflows
	hack/lint.sh manifests
	;;
shell | workflows | manifests)
	"$@"
	;;
tools)
	have_python || true
	have_actionlint || true
	;;
*)
	echo "usage: lint.sh [shell | workflows [FILE...] | manifests [FILE...] | tools]" >&2
	exit 2
	;;
esac
