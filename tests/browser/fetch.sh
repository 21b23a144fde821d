#!/bin/sh
# Fetches Debian's chromium and its driver without being root: fetch.sh FOLDER
# Leaves FOLDER/chromium and FOLDER/chromedriver, which run what lies unpacked in FOLDER/root with the libraries and
# fonts there that this machine lacks. apt checks the signatures of the packages; nothing is installed. For tests only.
set -eu
folder=${1:?"name a folder: fetch.sh FOLDER"}
for tool in apt-get dpkg-deb; do
    command -v $tool >/dev/null || {
        echo "error: there is no $tool here: chromium is fetched on Debian; elsewhere install chromium and chromedriver" >&2
        exit 1
    }
done
mkdir -p "$folder"
folder=$(CDPATH='' cd -- "$folder" && pwd)
work=$(mktemp -d "$folder/fetching.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root"
options="-o Dir::State::lists=$work/lists -o Dir::Cache=$work/cache -o APT::Sandbox::User= -o Debug::NoLocking=1 -qq"
# shellcheck disable=SC2086  # several words
apt-get $options update
# what is installed already is not among what comes
# shellcheck disable=SC2086
apt-get $options --yes --no-install-recommends --download-only install chromium chromium-driver fonts-dejavu-core >/dev/null
for package in "$work"/cache/archives/*.deb; do dpkg-deb -x "$package" "$work/root"; done
rm -rf "$work/root/usr/share/doc" "$work/root/usr/share/icons" "$work/root/usr/share/locale" "$work/root/usr/share/man" "$folder/root"
mv "$work/root" "$folder/root"

# wrapper NAME PROGRAM: runs a program of root/ with the libraries and fonts there; the folder may be moved.
wrapper() {
    cat > "$folder/$1" <<'END'
#!/bin/sh
root=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "$0")")" && pwd)/root
LD_LIBRARY_PATH=$(find "$root/usr/lib" -name 'lib*.so*' -not -path '*/lib/chromium/*' -printf '%h\n' | sort -u | paste -sd :)
XDG_DATA_DIRS=$root/usr/share:/usr/local/share:/usr/share
export LD_LIBRARY_PATH XDG_DATA_DIRS
if test ! -d /etc/fonts && test -d "$root/etc/fonts"; then export FONTCONFIG_PATH="$root/etc/fonts"; fi
END
    echo "exec \"\$root/$2\" \"\$@\"" >> "$folder/$1"
    chmod +x "$folder/$1"
    "$folder/$1" --version
}

wrapper chromium usr/lib/chromium/chromium
wrapper chromedriver usr/bin/chromedriver
