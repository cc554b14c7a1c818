# shellcheck shell=sh
# Sourced, from the root of the project, by scripts that run cargo: puts a Rust toolchain
# that is new enough in front of PATH, and sees that there is a C linker. In this order:
#
# 1. cargo and rustc on PATH, or rustup's in ~/.cargo/bin;
# 2. the distribution's, where it is installed: Ubuntu's versioned packages are in
#    /usr/lib/rust-VERSION/bin;
# 3. the distribution's, installed now: Debian 13's `cargo`, Debian 12's `cargo-web`, the
#    newest `cargo-VERSION` of Ubuntu.
#
# Calls no package manager where 1 or 2 has what is needed.

rust_minimum=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' Cargo.toml)

# is_new_enough VERSION: a Rust version, as in `1.85.1` or a package's `1.85.0+dfsg3-1`.
is_new_enough() {
	[ -n "$1" ] &&
		[ "$(printf '%s\n' "$rust_minimum" "$1" | sort --version-sort | head -n 1)" = "$rust_minimum" ]
}

# version_of DIR: what DIR's rustc is, if there is a cargo too; of PATH's where DIR is empty.
version_of() {
	command -v "${1:+$1/}cargo" >/dev/null &&
		"${1:+$1/}rustc" --version 2>/dev/null | cut -d ' ' -f 2
}

# Takes the first installed toolchain that is new enough; fails if there is none.
use_installed_rust() {
	! is_new_enough "$(version_of '')" || return 0
	for directory in "${CARGO_HOME:-${HOME:-}/.cargo}/bin" /usr/bin \
		$(printf '%s\n' /usr/lib/rust-*/bin | sort --version-sort --reverse); do
		if is_new_enough "$(version_of "$directory")"; then
			PATH=$directory:$PATH
			return 0
		fi
	done
	return 1
}

# The package of cargo that apt can install and whose compiler is new enough.
packaged_cargo() {
	versioned=$(apt-cache pkgnames rustc- | sed -n 's/^rustc-\([0-9.]*\)$/-\1/p' |
		sort --version-sort --reverse)
	for suffix in '' -web $versioned; do
		version=$(apt-cache policy "rustc$suffix" | sed -n 's/^  Candidate: //p')
		if [ "$version" != '(none)' ] && is_new_enough "$version"; then
			echo "cargo$suffix"
			return
		fi
	done
}

install_rust() {
	command -v apt-get >/dev/null || return 1
	package=$(packaged_cargo)
	if [ -z "$package" ] && [ "$(id -u)" = 0 ]; then
		# The lists may be old, or not there at all.
		apt-get update -qq
		package=$(packaged_cargo)
	fi
	[ -n "$package" ] && hack/need.sh "$package" gcc libc6-dev ca-certificates && use_installed_rust
}

use_installed_rust || install_rust || {
	found=$(version_of '')
	cat >&2 <<END
weft needs Rust $rust_minimum or later${found:+; found $found}, and this distribution packages none.
Install it with rustup (https://rustup.rs): rustup toolchain install stable
END
	exit 1
}
export PATH
command -v cc >/dev/null || hack/need.sh gcc libc6-dev
