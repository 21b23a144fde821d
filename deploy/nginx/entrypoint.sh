#!/bin/sh
# Runs the proxy with the settings of the environment (README.md of this folder lists them).
#
#   entrypoint.sh run       render, check, and become nginx; SIGQUIT lets it finish what it has
#   entrypoint.sh check     render and check
#   entrypoint.sh reload    the same for a proxy that runs: new settings, secrets or certificate, without losing a request
#   entrypoint.sh quit      let it finish what it has, and end
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
nginx=${MASKX_NGINX:-nginx}
run=${MASKX_RUN:-/run/maskx-proxy}
secrets=${MASKX_SECRETS:-/run/secrets/maskx-secrets}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# setting NAME PATTERN MEANING DEFAULT: puts the value into $value; it goes into nginx's files, so its form is checked.
setting() {
    eval "value=\${MASKX_$1-}"
    value=${value:-$4}
    printf '%s' "$value" | LC_ALL=C grep -Eqx -- "$2" && test "$(printf '%s' "$value" | wc -l)" -eq 0 ||
        fail "MASKX_$1 is '$value'; expected $3, such as $4"
}

# substitute NAME PATTERN MEANING DEFAULT: the same, and notes that @NAME@ becomes the value.
substitute() {
    setting "$@"
    substitutions="$substitutions
s|@$1@|$value|g"
}

address='([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}'
file='/[A-Za-z0-9_./-]+'
seconds='[1-9][0-9]{0,5}s'
number='[1-9][0-9]{0,9}'
origin='https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?'

render() {
    new=$run/conf.new
    rm -rf "$new"
    mkdir -p "$new"
    chmod 700 "$new"
    substitutions="s|@RUN@|$run|g"
    substitute INFERENCE "$address" 'HOST:PORT of the inference API' 127.0.0.1:8080
    substitute GRPC "$address" 'HOST:PORT of the gRPC inference API' 127.0.0.1:7070
    substitute READINESS "$address" 'HOST:PORT of the readiness endpoint' 127.0.0.1:8083
    substitute MAX_BODY "$number" 'bytes, as max_request_size in config.properties' 33554432
    substitute RATE "$number" 'requests per second and address' 100
    substitute BURST "$number" 'a number of requests' 200
    substitute CONNECTIONS "$number" 'requests at once per address' 64
    substitute HEADER_TIMEOUT "$seconds" 'seconds' 10s
    substitute BODY_TIMEOUT "$seconds" 'seconds' 10s
    substitute SEND_TIMEOUT "$seconds" 'seconds' 30s
    substitute IDLE_TIMEOUT "$seconds" 'seconds' 60s
    substitute ANSWER_TIMEOUT "$seconds" 'seconds, more than responseTimeout in model-config.yaml' 150s
    substitute DRAIN_TIMEOUT "$seconds" 'seconds' 180s
    substitute WORKERS "auto|$number" 'auto or a number of processes' 2
    substitute ACCESS_LOG "off|$file" 'off or the absolute path of a file' /dev/stdout
    substitute ERROR_LOG "stderr|$file" 'stderr or the absolute path of a file' stderr
    listen
    for source in "$here"/*.conf; do
        name=$(basename "$source")
        test "$name" = tls.conf || printf '%s\n' "$substitutions" | sed -f - "$source" > "$new/$name"
    done
    allowed > "$new/allowed.conf"
    origins > "$new/origins.conf"
    secret_map > "$new/secrets.conf"
    page
}

# page/: the files of client/js, which lie beside this file in the image; without the page nothing is told either.
page() {
    setting PAGE 'on|off' 'on or off' on
    if test "$value" = off; then
        echo 'return 404;' > "$new/told.conf"
        return 0
    fi
    js=$here/js
    test -d "$js" || js=$here/../../client/js
    test -r "$js/page/index.html" || fail "the page's files lie neither in $here/js nor in client/js; MASKX_PAGE=off goes without them"
    mkdir -p "$new/page/js/page"
    cp "$js/page/index.html" "$new/page/"
    cp "$js"/*.js "$new/page/js/"
    cp "$js"/page/*.js "$js"/page/*.css "$new/page/js/page/"
}

# listen.conf: with TLS, REST and gRPC share a port; without, HTTP/1.1 and HTTP/2 need one each.
listen() {
    setting TLS 'on|off' 'on or off' on
    if test "$value" = on; then
        substitute CERTIFICATE "$file" 'the absolute path of a PEM file' /run/secrets/maskx-certificate
        test -r "$value" || fail "the certificate $value cannot be read; mount one, or name it with MASKX_CERTIFICATE"
        substitute KEY "$file" 'the absolute path of a PEM file' /run/secrets/maskx-key
        test -r "$value" || fail "the key $value cannot be read; mount one, or name it with MASKX_KEY"
        setting LISTEN "$address" 'ADDRESS:PORT for REST and gRPC' 0.0.0.0:8443
        echo "listen $value ssl http2;" > "$new/listen.conf"
        printf '%s\n' "$substitutions" | sed -f - "$here/tls.conf" >> "$new/listen.conf"
    else
        setting LISTEN "$address" 'ADDRESS:PORT for REST' 127.0.0.1:8000
        echo "listen $value;" > "$new/listen.conf"
        setting LISTEN_GRPC "$address" 'ADDRESS:PORT for gRPC' 127.0.0.1:7000
        echo "listen $value http2;" >> "$new/listen.conf"
    fi
}

# allowed.conf: the networks that may ask.
allowed() {
    setting ALLOW '(all|[0-9A-Fa-f.:]+(/[0-9]{1,3})?)( (all|[0-9A-Fa-f.:]+(/[0-9]{1,3})?))*' \
        'all, or networks with spaces between' all
    for network in $value; do echo "allow $network;"; done
    echo 'deny all;'
}

# origins.conf: the lines of a map from the Origin header to what a page of that origin is told.
origins() {
    setting CORS "off|\\*|$origin( $origin)*" 'off, * or origins of pages with spaces between' off
    echo 'default "";'
    case $value in
    off) ;;
    '*') echo '"~." "*";' ;;
    *) for one in $value; do printf '"~*^\\Q%s\\E$" "%s";\n' "$one" "$one"; done ;;
    esac
}

# secrets.conf: the lines of a map from the Authorization header to the client's name. A line of the file is
# "SECRET" or "NAME SECRET"; empty lines and those that begin with # do not count.
secret_map() {
    test -r "$secrets" || fail "the secrets $secrets cannot be read; mount a file with one secret a line, or name it with MASKX_SECRETS"
    LC_ALL=C awk -v file="$secrets" '
        function refuse(why) { print "error: line " NR " of " file " " why > "/dev/stderr"; bad = 1; exit 2 }
        { sub(/\r$/, "") }
        /^[ \t]*(#|$)/ { next }
        NF > 2 { refuse("has more than two words; expected SECRET or NAME SECRET") }
        $NF !~ /^[A-Za-z0-9._~+\/=-]+$/ { refuse("has a secret with other characters than A-Z a-z 0-9 . _ ~ + / = -") }
        length($NF) < 32 || length($NF) > 512 { refuse("has a secret of " length($NF) " characters; 32 to 512 are needed: openssl rand -hex 32") }
        NF == 2 && $1 !~ /^[A-Za-z0-9._-]+$/ { refuse("has a name with other characters than A-Z a-z 0-9 . _ -") }
        seen[$NF]++ { refuse("has a secret that stands above already") }
        { found = 1; printf "\"~^(?i:bearer) +\\Q%s\\E$\" \"%s\";\n", $NF, NF == 2 ? $1 : "line" NR }
        END { if (!bad && !found) { print "error: " file " holds no secret: openssl rand -hex 32 > " file > "/dev/stderr"; exit 2 } if (bad) exit 2 }
    ' "$secrets"
}

# adopt: checks what was rendered where it will lie; a proxy that runs keeps its files where the new ones are wrong.
adopt() {
    rm -rf "$run/conf.old"
    if test -d "$run/conf"; then mv "$run/conf" "$run/conf.old"; fi
    mv "$run/conf.new" "$run/conf"
    if ! said=$("$nginx" -t -e stderr -p "$run" -c "$run/conf/nginx.conf" 2>&1); then
        rm -rf "$run/conf"
        if test -d "$run/conf.old"; then mv "$run/conf.old" "$run/conf"; fi
        fail "nginx refuses these settings: $said"
    fi
    rm -rf "$run/conf.old"
}

printf '%s' "$run" | LC_ALL=C grep -Eqx "$file" || fail "MASKX_RUN is '$run'; expected the absolute path of a folder"
command -v "$nginx" >/dev/null || fail "there is no $nginx; install nginx (Debian: apt-get install nginx-light), or name it with MASKX_NGINX"
umask 077
case ${1-run} in
run | check)
    test "$(id -u)" -ne 0 || fail 'the proxy does not run as root; run it as another user'
    mkdir -p "$run" 2>/dev/null && test -w "$run" || fail "$run cannot be written; mount a folder there, or name one with MASKX_RUN"
    render
    adopt
    if test "${1-run}" = check; then exit 0; fi
    exec "$nginx" -e stderr -p "$run" -c "$run/conf/nginx.conf"
    ;;
reload)
    test -s "$run/nginx.pid" || fail "no proxy runs from $run"
    render
    adopt
    kill -HUP "$(cat "$run/nginx.pid")"
    ;;
quit)
    test -s "$run/nginx.pid" || fail "no proxy runs from $run"
    kill -QUIT "$(cat "$run/nginx.pid")"
    ;;
*)
    fail "'$1' is not one of run, check, reload, quit"
    ;;
esac
