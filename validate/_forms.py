"""Forms that a program fills in, for the workload of templates."""

from __future__ import annotations

from random import Random

__all__ = ["fill_form"]


def fill_form(random: Random, length: int) -> str:
    """One filled-in form of at least ``length`` characters: a head, then as many entries as it takes."""
    head, entry = random.choice(_FORMS)
    text, number = _fill(head, random, 0), 0
    while len(text) < length:
        number += 1
        text += _fill(entry, random, number)
    return text


def _fill(form: str, random: Random, number: int) -> str:
    values = {name: random.choice(choices) for name, choices in _VALUES.items()}
    return form.format(
        number=number,
        code=f"{random.choice('ABCDEFGH')}-{random.randrange(1000, 100000)}",
        day=random.randrange(1, 29),
        hour=random.randrange(6, 21),
        minute=f"{random.randrange(60):02d}",
        amount=f"{random.randrange(10, 9000)}.{random.randrange(100):02d}",
        count=random.randrange(2, 60),
        **values,
    )


_VALUES = {
    "person": (
        "Amara Okafor", "Li Wei", "Jonas Lindqvist", "Priya Raghunathan", "Tom Baker", "Fatima al-Sayed",
        "Ana Sousa", "Yuki Tanaka", "Carlos Mendoza", "Ingrid Aas", "Noah Katz", "Zofia Kowalczyk",
        "Kwame Mensah", "Eve Martin",
    ),
    "city": (
        "Porto", "Leeds", "Nagoya", "Valparaíso", "Gdańsk", "Accra", "Winnipeg", "Tartu", "Pune",
        "Bergen", "Izmir", "San Antonio", "Salt Lake City", "Ghent",
    ),
    "month": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
        "November", "December",
    ),
    "item": (
        "water pump", "router", "delivery van", "roof panel", "heat exchanger", "laptop", "conveyor belt",
        "lift", "backup generator", "security camera", "coffee machine", "server rack",
    ),
    "fault": (
        "stopped without warning", "leaks at the lower seal", "shows error 17 on the display",
        "overheats under load", "was damaged by hail", "does not start after a power cut",
        "makes a grinding noise", "lost its connection",
    ),
    "action": (
        "was replaced by a new one", "was repaired on site", "was sent to the manufacturer",
        "is kept under observation", "was reset and tested twice", "awaits a spare part",
        "was taken out of service", "needs no further work",
    ),
    "priority": (
        "low", "normal", "high", "urgent",
    ),
}  # fmt: skip

_TICKET = (
    """SUPPORT TICKET {code}
Opened on {day} {month} at {hour}:{minute} by {person} of the office in {city}.
Priority: {priority}. Assigned to: the technical service team.

Please classify the ticket below, name the most likely cause and propose the next step. Answer in the form
"class; cause; step" and do not add anything else.

Description by the customer: The {item} in our {city} office {fault}. We have {count} people who depend on it.
History of the ticket:
""",
    "Entry {number}. On {day} {month} at {hour}:{minute} the technician {person} inspected the {item} "
    "and noted that it {fault}. The customer was informed by telephone. The part {action}, and the "
    "cost of {amount} euros was charged to account {code}.\n",
)

_CLAIM = (
    """INSURANCE CLAIM FORM
Claim number: {code}
Policy holder: {person}, resident in {city}
Date of loss: {day} {month}
Type of property: {item}
Amount claimed: {amount} euros

Check the claim against the conditions of the policy. List every item that is not covered, with the
number of the condition that excludes it, and state the amount to be paid.

Statement of the policy holder: On the day of the loss, at about {hour}:{minute}, the {item} {fault}.
A witness, {person}, was present.
Items claimed:
""",
    "Item {number}: one {item}, bought on {day} {month} in {city} for {amount} euros. According to "
    "the policy holder the item {fault}. After the inspection it {action}. The receipt has the number "
    "{code}, and the assessor was {person}.\n",
)

_REPORT = (
    """MONTHLY MAINTENANCE REPORT
Site: {city}
Period: {month}
Prepared by: {person}
Reference: {code}

Write a summary of at most five sentences for the management. Mention every machine that was taken out
of service, and the total of the costs.

During the period {count} inspections were carried out. The most frequent finding was that the {item} {fault}.
Findings:
""",
    "Finding {number}: During the inspection on {day} {month} at {hour}:{minute} the {item} on level "
    "{count} {fault}. {person} was responsible. The machine {action}. Cost of labour and material: "
    "{amount} euros, order {code}, priority {priority}.\n",
)

_FORMS = (_TICKET, _CLAIM, _REPORT)
