"""Forms that a program fills in, for the workload of templates."""

from __future__ import annotations

from random import Random

__all__ = ["FORMS", "Form", "fill_form"]


Form = tuple[str, str]
"""Head and entry, with the names of what is filled in in braces."""


def fill_form(form: Form, random: Random, length: int) -> str:
    """The form filled in to at least ``length`` characters: its head, then as many entries as it takes."""
    head, entry = form
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
        amount=f"{random.randrange(10, 9000)}.{random.randrange(100):02d}",
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
Opened on {day} {month} by {person}. Priority: {priority}.

You are given a ticket and its history. Classify the ticket as hardware, software, network or building,
name the most likely cause in one sentence, and propose the next step. If the history shows that the
same step was tried before, propose another one. Answer in the form "class; cause; step" and do not add
anything else.

Description by the customer: The {item} in our office in {city} {fault}. We depend on it every day and
ask for an appointment as soon as possible. We have already switched it off and on again, checked the
cables and read the manual, without success. Please call before you come, so that someone can open the
door.
History of the ticket:
""",
    """Entry {number}, {day} {month}. The technician arrived on time, was let in by the customer and
identified the device by its serial number. The power supply, the cables and the settings were checked, and
photographs were taken for the file. Finding: the {item} {fault}. The customer was told what was found
and what it will cost, and agreed to the work. Result: the device {action}. The visit was signed by
{person}, and a copy of the protocol was sent to the customer by post within two working days.
""",
)

_CLAIM = (
    """INSURANCE CLAIM {code}
Policy holder: {person}, {city}. Date of loss: {day} {month}. Amount claimed: {amount} euros.

Check the claim below against the general conditions of the policy. List every item that is not covered,
with the number of the condition that excludes it, and state the amount to be paid. Wear, faults of
manufacture and damage that the policy holder caused on purpose are not covered. Items older than ten
years are covered at half their price. If a receipt is missing, ask for it and decide nothing.

Statement of the policy holder: On the day of the loss I came home in the evening and noticed that the
{item} {fault}. I informed the insurance company on the same day and have changed nothing since then.
All items belong to me, and none of them is insured anywhere else.
Items claimed:
""",
    """Item {number}: one {item}, bought new for {amount} euros. According to the policy holder it was used at
home only, was kept in a dry room and was serviced once a year. On the day of the loss it {fault}. The
assessor saw the item, compared it with the photographs and the receipt, and found no sign of earlier
damage. In the opinion of the assessor the price is usual for an item of that kind. After the inspection
it {action}. Assessor: {person}.
""",
)

_REPORT = (
    """MAINTENANCE REPORT, {city}, {month}
Prepared by {person}, reference {code}.

Write a summary of the report for the management, in at most five sentences and without technical terms.
Mention every machine that was taken out of service and every finding that could endanger people. State
the total of the costs at the end, and compare it with the budget if the report names one. Do not give
advice.

During the period all machines of the site were inspected according to the plan, with the exception of
those that were in use by a customer. The most frequent finding was that the {item} {fault}. There were
no accidents.
Findings:
""",
    """Finding {number}. The inspection was carried out according to the manual, with the power switched off
and the area secured. The {item} was opened, cleaned, and checked for wear, corrosion and loose
connections. It turned out that it {fault}. The measured values were entered in the log and compared
with those of the previous inspection, as the operator requires. The machine {action}. No other defects
were found, the tools were counted, and the work was approved by {person}. Cost of labour and material:
{amount} euros.
""",
)

FORMS: tuple[Form, ...] = (_TICKET, _CLAIM, _REPORT)
