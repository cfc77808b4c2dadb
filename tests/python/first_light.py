"""Creates a network and an instance, waits until it is active, and deletes both.

A client of another language, with a stock AMQP library (pika) and nothing of berth: everything it knows stands in
docs/messages.md. Usage: first_light.py AMQP-URL IMAGE-URL IMAGE-SHA256
"""

import json
import sys
import time
import uuid

import pika

ANSWER_SECONDS = 15
BUILD_SECONDS = 90


class Refused(Exception):
    """The scheduler said no; the argument is its refusal."""


class Client:
    """One connection, one private queue for answers."""

    def __init__(self, url):
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        self.replies = self.channel.queue_declare(queue="", exclusive=True).method.queue
        self.answers = {}
        self.channel.basic_consume(self.replies, self._keep, auto_ack=True)

    def _keep(self, _channel, _method, properties, body):
        self.answers[properties.correlation_id] = json.loads(body)

    def ask(self, method, body):
        """Sends one request and returns what is granted."""
        message_id = str(uuid.uuid4())
        self.channel.basic_publish(
            exchange="",
            routing_key="scheduler",
            body=json.dumps(body).encode(),
            mandatory=True,
            properties=pika.BasicProperties(
                type=method,
                message_id=message_id,
                correlation_id=message_id,
                reply_to=self.replies,
                content_type="application/json",
                delivery_mode=2,
                timestamp=int(time.time()),
                app_id="first_light.py",
                headers={"x-berth-version": 1},
            ),
        )
        end = time.monotonic() + ANSWER_SECONDS
        while message_id not in self.answers:
            if time.monotonic() > end:
                raise TimeoutError(f"no answer to {method}")
            self.connection.process_data_events(time_limit=0.2)
        answer = self.answers.pop(message_id)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["ok"]

    def wait(self, instance, state):
        """Shows an instance again and again until it is in a state."""
        end = time.monotonic() + BUILD_SECONDS
        while True:
            view = self.ask("instance.show", {"instance": instance})
            if view["vm_state"] == state and view["task_state"] is None:
                return view
            if view["vm_state"] == "error" or time.monotonic() > end:
                raise RuntimeError(f"waited for {state}, but: {view}")
            self.connection.process_data_events(time_limit=0.2)


def main(url, image_url, image_sha256):
    client = Client(url)

    network = client.ask(
        "network.create", {"id": str(uuid.uuid4()), "name": "python", "cidr": "10.78.0.0/24"}
    )
    print("network created:", network["id"], network["subnets"][0]["cidr"])

    instance = str(uuid.uuid4())
    request = {
        "id": instance,
        "name": "from-python",
        "flavor": {"vcpus": 1, "memory_mb": 96, "disk_gb": 1},
        "image": {"url": image_url, "sha256": image_sha256, "format": "qcow2"},
        "networks": [{"network": "python", "ip_address": "10.78.0.42"}],
    }
    accepted = client.ask("instance.create", request)
    print("instance accepted:", accepted["id"], "on", accepted["host"])
    assert client.ask("instance.create", request)["id"] == instance, "the same request again is the same instance"

    active = client.wait(instance, "active")
    assert active["ports"][0]["fixed_ips"][0]["ip_address"] == "10.78.0.42", active
    print("instance active:", active["power_state"])

    try:
        client.ask("instance.show", {"instance": "nobody"})
        raise AssertionError("an unknown instance was shown")
    except Refused as refused:
        assert refused.args[0]["code"] == "not_found", refused

    client.ask("instance.delete", {"instance": instance})
    client.wait(instance, "deleted")
    print("instance deleted")
    client.ask("network.delete", {"network": "python"})
    client.connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
