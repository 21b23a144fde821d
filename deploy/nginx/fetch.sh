#!/bin/sh
# Fetches Debian's nginx without being root: fetch.sh FOLDER
# Leaves FOLDER/sbin/nginx and, in FOLDER/lib, the libraries that a bare Debian lacks (set LD_LIBRARY_PATH to it).
# apt checks the signatures of the packages; nothing is installed. For trials and tests: an image installs nginx.
set -eu
folder=${1:?"name a folder: fetch.sh FOLDER"}
for tool in apt-get apt-cache dpkg-deb; do
    command -v $tool >/dev/null || {
        echo "error: there is no $tool here: nginx is fetched on Debian and Ubuntu; elsewhere install nginx 1.22 or later" >&2
        exit 1
    }
done
mkdir -p "$folder"
folder=$(CDPATH='' cd -- "$folder" && pwd)
work=$(mktemp -d "$folder/fetching.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/unpacked" "$folder/sbin" "$folder/lib"
options="-o Dir::State::lists=$work/lists -o Dir::Cache=$work/cache -o APT::Sandbox::User= -qq"
# shellcheck disable=SC2086  # several words
apt-get $options update
# shellcheck disable=SC2086
needed=$(apt-cache $options depends nginx | sed -n 's/^  Depends: \(lib\(pcre2\|ssl\|crypt\)[a-z0-9.-]*\)$/\1/p')
cd "$work"
# shellcheck disable=SC2086
apt-get $options download nginx $needed
for package in ./*.deb; do dpkg-deb -x "$package" unpacked; done
find unpacked -name 'lib*.so.*' \( -type f -o -type l \) -exec cp -P {} "$folder/lib/" \;
cp unpacked/usr/sbin/nginx "$folder/sbin/nginx"
LD_LIBRARY_PATH=$folder/lib "$folder/sbin/nginx" -v
