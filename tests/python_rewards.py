"""Rewards in Python, as files that tests of experiments name."""


def short(prompts, responses):
    return [-0.1 * len(response) for response in responses]


def letters(prompts, responses, worth):
    """What a letter is worth to each prompt, times the letters of its response."""
    return [x * len(response) for response, x in zip(responses, worth, strict=True)]
