"""A pod of two containers, left running: a web server, and a client that fetches from it over the pod's localhost."""

import asyncio
import sys

import atoll

SERVE = "mkdir /www && echo hello from $HOSTNAME > /www/index.html && exec httpd -f -p 80 -h /www"
FETCH = "while true; do wget -q -O - http://localhost/ || echo not up yet; sleep 1; done"


async def main(host_port: int) -> None:
    async with atoll.connect() as client:
        pod = await client.run_pod("web", ports={host_port: 80})
        await pod.run("atoll/busybox", ["sh", "-c", SERVE], name="server", cpus=0.5, memory="64MiB")
        await pod.run("atoll/busybox", ["sh", "-c", FETCH], name="client", cpus=0.25, memory="32MiB")
        print(f"pod {pod.name} runs at {(await pod.status()).ip}")


asyncio.run(main(int(sys.argv[1])))
