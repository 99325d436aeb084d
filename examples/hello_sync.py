"""The same in a program without an event loop. As root: python examples/hello_sync.py"""

import atoll

if __name__ == "__main__":
    with atoll.connect_sync() as client, client.run_pod(ports={8080: 80}) as pod:
        server = pod.run("atoll/busybox", ["httpd", "-f", "-h", "/etc"], cpus=0.5, memory="64MiB")
        result = server.exec(["wget", "-qO-", "http://127.0.0.1/hostname"], timeout=5)
        print(result.text, end="")
