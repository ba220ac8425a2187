#!/usr/bin/env python3
# Writes what a guest says on its serial line to a file, and tells it what comes on
# standard input, until the guest or the input ends.
#
#   console.py SOCKET FILE
import os
import selectors
import socket
import sys

guest = socket.socket(socket.AF_UNIX)
guest.connect(sys.argv[1])
said = open(sys.argv[2], "ab", buffering=0)
either = selectors.DefaultSelector()
either.register(guest, selectors.EVENT_READ)
either.register(0, selectors.EVENT_READ)
while True:
    for key, _ in either.select():
        if key.fileobj is guest:
            data = guest.recv(65536)
            said.write(data)
        else:
            data = os.read(0, 4096)
            guest.sendall(data)
        if not data:
            sys.exit()
