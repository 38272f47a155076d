"""Checks before an existing Ray cluster is joined: whether it accepts this machine, and what it has.

A process of its own asks, because Ray waits for ever for an address where no cluster is, and prints its
attempts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading

import psutil

from dino_lab.errors import UserError
from dino_lab.sweeps.ray.capacity import Machine

_ANSWER = 5.0  # seconds in which a port has to answer
_PATIENCE = 15.0  # seconds in which a cluster has to accept this machine
_MACHINES, _REFUSAL = "machines: ", "refused: "
_WRONG_TOKEN = "InvalidAuthToken"


def main() -> None:
    """Print on one line the machines of the cluster that the command line names, or why there are none."""
    import ray

    try:
        ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
        machines = [
            [int(has.get("CPU", 0)), int(has.get("GPU", 0)), node["NodeManagerHostname"]]
            for node in ray.nodes()
            if node["Alive"]
            for has in [node["Resources"]]
        ]
    except Exception as error:
        print(_REFUSAL + " ".join(str(error).split()), flush=True)
    else:
        print(_MACHINES + json.dumps(machines), flush=True)
    os._exit(0)  # an orderly end takes Ray a second


def machines_at(address: str) -> list[Machine]:
    """The machines of the cluster at HOST:PORT; UserError if it does not accept this machine."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dino_lab.sweeps.ray.join_cluster", address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C does not reach it
    )
    timer = threading.Timer(_PATIENCE, process.kill)
    timer.start()
    out = process.stdout
    assert out is not None
    try:
        for line in out:
            if line.startswith(_MACHINES):
                return [Machine(*said) for said in json.loads(line.removeprefix(_MACHINES))]
            if _WRONG_TOKEN in line:
                raise UserError(
                    f"--address {address}: the cluster has another token; set RAY_AUTH_MODE=token, and "
                    "RAY_AUTH_TOKEN to the one that it was started with"
                )
            if line.startswith(_REFUSAL):
                raise UserError(f"--address {address}: {line.removeprefix(_REFUSAL).strip()}")
    finally:
        process.kill()
        process.wait()
        out.close()
        timer.cancel()
        timer.join()  # the process is forked later, and must have one thread then
    raise UserError(f"--address {address}: what answers there is no Ray cluster that this machine belongs to")


def is_on_loopback_only(address: str) -> bool:
    """Whether it is a port of this machine that no other machine can reach."""
    port = int(address.rpartition(":")[2])
    sockets = []
    with contextlib.suppress(psutil.AccessDenied):
        sockets = psutil.net_connections("tcp")
    places = [tuple(one.laddr) for one in sockets if one.status == psutil.CONN_LISTEN]
    listening = [str(ip).removeprefix("::ffff:") for ip, of in places if of == port]
    return bool(listening) and all(ip.startswith("127.") or ip == "::1" for ip in listening)


def check_address(address: str) -> None:
    """UserError unless `address` is HOST:PORT and something listens there."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise UserError(f"--address {address}: should be HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no Ray cluster answers there ({error})") from None


if __name__ == "__main__":
    main()
