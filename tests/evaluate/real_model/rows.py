"""Rows that a small instruct model answers partly: texts, conversations, choices of many lengths, and short questions."""

from __future__ import annotations

from typing import Any

TEXTS = [
    "The Nile flows north through Egypt and empties into the Mediterranean Sea.",
    "Water boils at 100 °C at sea level; on Mount Everest it boils at about 71 °C.",
    "def fib(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n",
    "SELECT name, COUNT(*) AS n\nFROM orders\nWHERE total > 99.5\nGROUP BY name;",
    "In 1969, Neil Armstrong became the first person to walk on the Moon.",
    "Der schnelle braune Fuchs springt über den faulen Hund, und keiner weiß warum.",
    "日本の首都は東京です。人口は約1400万人です。",
    "Ça va? Où est l'hôtel, s'il vous plaît?",
    "🙂 Emojis 👩‍💻 are several tokens → even one of them.",
    "Dear Ms Brown,\n\nThank you for your letter of 3 May.\n\nYours sincerely,\nJohn Smith",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610",
    '{"id": 17, "tags": ["a", "b"], "ok": true, "rate": 0.25}',
    "  A line that begins with spaces, and ends with them.  ",
    "I can't, you won't, they've gone; WE'LL SEE.",
    "Photosynthesis converts carbon dioxide and water into glucose and oxygen using light.",
    "https://example.org/a_b?c=1&d=%20 is a URL, and user@example.org is an address.",
    "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer",
    "Привет, мир! Как дела?",
    "E = mc^2, where c = 299792458 m/s.",
    "Yes.",
]
TALKS: list[dict[str, Any]] = [
    {
        "messages": [
            *([{"role": "system", "content": "Answer in one sentence."}] if number % 3 == 0 else []),
            {"role": "user", "content": f"Tell me about this: {text.split()[0]}"},
            {"role": "assistant", "content": text.strip()},
            *(
                [
                    {"role": "user", "content": "And in short?"},
                    {"role": "assistant", "content": " ".join(text.split()[:4])},
                ]
                if number % 2
                else []
            ),
        ]
    }
    for number, text in enumerate(TEXTS)
]
"""Conversations of one or two answers, with and without a system message."""
_CHOICES = [
    ("What is the capital of France?", ["Paris", "Rome, which lies in Italy", "Oslo", "Bern"]),
    ("Which planet is known as the Red Planet?", ["Mars", "Venus", "Jupiter, the largest of all", "Saturn"]),
    ("What gas do plants take in?", ["Carbon dioxide", "Oxygen", "Neon", "A mixture of helium and argon"]),
    ("How many legs does a spider have?", ["Eight", "Six", "Four", "One hundred and twenty"]),
    ("What is H2O?", ["Water", "Salt", "Sugar made from beets", "Iron"]),
    ("Who wrote Hamlet?", ["William Shakespeare", "Goethe", "Leo Tolstoy", "Homer"]),
    ("What do bees make?", ["Honey", "Milk", "Silk", "Glass bottles"]),
    ("Which is the largest ocean?", ["The Pacific Ocean", "The Arctic Ocean", "The Baltic", "Lake Como"]),
    ("What is the opposite of hot?", ["Cold", "Warm", "Boiling", "Rather lukewarm, I would say"]),
    ("Which animal barks?", ["A dog", "A cat", "A goldfish in its bowl", "A horse"]),
    ("In which season does snow usually fall?", ["Winter", "Summer", "Spring", "Early autumn"]),
    ("What colour is the sky on a clear day?", ["Blue", "Green", "Red", "Black and white stripes"]),
    ("What is 7 + 5?", ["12", "13", "75", "eleven and a half"]),
    ("Which metal is liquid at room temperature?", ["Mercury", "Iron", "Gold", "Stainless steel"]),
    ("What is the past tense of go?", ["went", "goed", "gone", "has been going"]),
    ("Welche Stadt liegt in Österreich?", ["Wien", "Köln", "Zürich", "Rio de Janeiro"]),
    ("Which number is even?", ["4", "3", "7", "1,001"]),
    ("What do you read?", ["A book", "A stone", "A glass of water", "A spoon"]),
    ("What keeps the doctor away?", ["An apple a day", "Sugar", "A hammer", "No sleep at all"]),
    ("Who was on the Moon first?", ["Neil Armstrong", "Yuri Gagarin", "Napoleon", "Marie Curie"]),
]
CHOICES: list[dict[str, Any]] = [
    {
        "question": question,
        "choices": choices[-(number % 4) :] + choices[: -(number % 4)],
        "answer": number % 4,
    }
    for number, (question, choices) in enumerate(_CHOICES)
]
"""The right choice is each index in turn."""
_SENTENCES = {
    "Paris": "the capital of France is Paris",
    "Cold": "The opposite of hot is cold.",
    "The Pacific Ocean": "The largest ocean is the Pacific Ocean!",
}
ASKED: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {
            "messages": [
                {"role": "user", "content": f"{question} Answer with one word or name only."},
                {"role": "assistant", "content": _SENTENCES.get(choices[0], choices[0])},
            ]
        }
        for question, choices in _CHOICES
    ],
    "plain": [
        {"prompt": f"Q: {question} A:", "response": f" {choices[0]}"} for question, choices in _CHOICES
    ],
}
