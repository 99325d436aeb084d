"""Run a web server in a pod, look into it, and leave nothing behind. As root: python examples/hello.py"""

import asyncio

import atoll


async def main() -> None:
    async with atoll.connect() as client, await client.run_pod(ports={8080: 80}) as pod:
        server = await pod.run("atoll/busybox", ["httpd", "-f", "-h", "/etc"], cpus=0.5, memory="64MiB")
        result = await server.exec(["wget", "-qO-", "http://127.0.0.1/hostname"], timeout=5)
        print(result.text, end="")


if __name__ == "__main__":
    asyncio.run(main())
