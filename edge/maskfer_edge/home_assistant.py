"""Home Assistant's discovery messages over MQTT, so that it shows a camera's expressions by itself."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

from maskfer_edge.contract import LABELS
from maskfer_edge.results import UNSURE

# Home Assistant shows no face of a camera that has been lost for longer.
STALE_S = 60

# What Home Assistant shows, by component and key; `state_topic` without the prefix.
ENTITIES: dict[tuple[str, str], dict[str, Any]] = {
    ("sensor", "expression"): {
        "name": "Expression",
        "icon": "mdi:emoticon-outline",
        "device_class": "enum",
        "options": [*LABELS, UNSURE, "none"],
        "state_topic": "faces",
        "expire_after": STALE_S,
        "value_template": "{{ value_json.faces[0].expression if value_json.faces else 'none' }}",
    },
    ("sensor", "faces"): {
        "name": "Faces",
        "icon": "mdi:face-recognition",
        "state_class": "measurement",
        "state_topic": "faces",
        "expire_after": STALE_S,
        "value_template": "{{ value_json.faces | length }}",
    },
    ("sensor", "confidence"): {
        "name": "Confidence",
        "icon": "mdi:percent",
        "unit_of_measurement": "%",
        "state_class": "measurement",
        "state_topic": "faces",
        "expire_after": STALE_S,
        "value_template": "{{ (value_json.faces[0].confidence * 100) | round(1) if value_json.faces else None }}",
    },
    ("sensor", "fps"): {
        "name": "Frames a second",
        "icon": "mdi:speedometer",
        "unit_of_measurement": "fps",
        "state_class": "measurement",
        "entity_category": "diagnostic",
        "state_topic": "health",
        "value_template": "{{ value_json.fps }}",
    },
    ("sensor", "frame_age"): {
        "name": "Frame age",
        "device_class": "duration",
        "unit_of_measurement": "s",
        "state_class": "measurement",
        "entity_category": "diagnostic",
        "state_topic": "health",
        "value_template": "{{ value_json.frame_age_s }}",
    },
    ("binary_sensor", "camera"): {
        "name": "Camera",
        "device_class": "connectivity",
        "entity_category": "diagnostic",
        "state_topic": "health",
        "value_template": "{{ 'OFF' if value_json.lost else 'ON' }}",
    },
}


def identity(name: str) -> str:
    """What the broker and Home Assistant know a device by: 23 letters and digits, the same for the same name."""
    return "maskfer" + hashlib.sha256(name.encode()).hexdigest()[:16]


def discovery(prefix: str) -> dict[str, str]:
    """Home Assistant's discovery messages, JSON by topic.

    Source: https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery
    """
    device = identity(prefix)
    release = version("maskfer")
    common = {
        "availability_topic": f"{prefix}/status",
        "origin": {"name": "maskfer", "sw_version": release},
        "device": {
            "identifiers": [device],
            "name": prefix.replace("/", " "),
            "manufacturer": "maskfer",
            "model": "Expressions of masked faces",
            "sw_version": release,
        },
    }
    return {
        f"homeassistant/{component}/{device}/{key}/config": json.dumps(
            entity | common | {"unique_id": f"{device}_{key}", "state_topic": f"{prefix}/{entity['state_topic']}"}
        )
        for (component, key), entity in ENTITIES.items()
    }
