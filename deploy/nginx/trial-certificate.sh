#!/bin/sh
# A self-signed certificate for trials on this machine: trial-certificate.sh FOLDER [ecdsa|rsa]
# Writes FOLDER/certificate.pem and FOLDER/key.pem, for localhost and 127.0.0.1, valid for 30 days.
set -eu
folder=${1:?"name a folder: trial-certificate.sh FOLDER [ecdsa|rsa]"}
case ${2-ecdsa} in
ecdsa) kind='ec -pkeyopt ec_paramgen_curve:prime256v1' ;;
rsa) kind='rsa:3072' ;;
*) echo "error: '$2' is neither ecdsa nor rsa" >&2; exit 2 ;;
esac
mkdir -p "$folder"
umask 077
# shellcheck disable=SC2086  # two words
openssl req -x509 -newkey $kind -nodes -days 30 -subj /CN=localhost \
    -addext 'subjectAltName=DNS:localhost,IP:127.0.0.1' -addext 'basicConstraints=critical,CA:FALSE' \
    -keyout "$folder/key.pem" -out "$folder/certificate.pem" 2>/dev/null
