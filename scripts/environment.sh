# shellcheck shell=bash
# The environment of every script, also where root has next to none (PATH=/usr/bin:/bin, no HOME). Sourced, not run.
export HOME=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
export PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin
