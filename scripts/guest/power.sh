#!/bin/sh
# The power button was pressed. Nothing here has state to save, so off at once.
echo "berth-guest: power button pressed, powering off" >/dev/console
/bin/sync
/bin/poweroff -f
