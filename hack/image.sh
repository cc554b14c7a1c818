#!/bin/sh
# Builds the container images of conf/kubernetes: one with the static executable in it,
# and one with the kubectl of this machine, which has to be a static executable, too.
#
# usage: image.sh TAG             with docker
#        image.sh --stage DIR     only the directory that docker would be given
#        image.sh --kubectl TAG   the image with kubectl, with docker
#
# WEFT names an executable to take instead of building one.
set -eu
caller=$PWD
cd "$(dirname "$0")/.."

stage() {
	executable=${WEFT:-$(hack/build.sh)}
	mkdir -p "$1"
	cp conf/kubernetes/Dockerfile conf/kubernetes/*.sh "$1"
	cp "$executable" "$1/weft"
	chmod 755 "$1"/*.sh "$1/weft"
}

case ${1-} in
--stage)
	stage "$(cd "$caller" && realpath --canonicalize-missing "$2")"
	;;
--kubectl)
	directory=$(mktemp -d)
	trap 'rm -rf "$directory"' EXIT
	cp "$(command -v kubectl)" "$directory/kubectl"
	printf 'FROM busybox:1.36\nCOPY kubectl /usr/local/bin/\n' >"$directory/Dockerfile"
	docker build --tag "$2" "$directory"
	;;
-* | '')
	echo "usage: image.sh TAG | --stage DIR | --kubectl TAG" >&2
	exit 2
	;;
*)
	directory=$(mktemp -d)
	trap 'rm -rf "$directory"' EXIT
	stage "$directory"
	docker build --tag "$1" "$directory"
	;;
esac
