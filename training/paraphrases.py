"""Messages for the default knowledge base, written by hand: the same questions in other words, and
questions that it does not answer. One half chooses the thresholds, the other half measures."""

from collections.abc import Mapping, Sequence

# Question of the knowledge base -> the same in other words, alternately to choose and to measure.
PARAPHRASES: Mapping[str, Sequence[str]] = {
    "I can't hear any sound.": (
        "There is no audio coming from my speakers",
        "my headphones are silent",
        "The sound on my laptop stopped working",
        "why is my pc mute?",
    ),
    "I forgot my password.": (
        "I don't remember my login password",
        "how can I reset the password of my account?",
        "I can't log in because I lost my password",
        "help, password gone",
    ),
    "My computer won't turn on.": (
        "my pc does not start when I press the button",
        "The desktop is dead, nothing happens when I switch it on",
        "My computer refuses to boot up",
        "I press the power button and nothing happens",
    ),
    "My internet is not working.": (
        "I have no internet connection",
        "the wifi is down at my place",
        "I can't get online since this morning",
        "My network connection keeps dropping",
    ),
    "My laptop screen is black.": (
        "the display of my notebook stays dark",
        "My laptop runs but the screen shows nothing",
        "black display on my laptop, what now?",
        "I only see a black screen on my notebook",
    ),
    "My mouse is not responding.": (
        "the cursor does not move any more",
        "my mouse stopped working",
        "Moving the mouse does nothing",
        "My wireless mouse seems to be dead",
    ),
    "My printer is not printing.": (
        "nothing comes out of the printer",
        "I can't print my document",
        "The printer does not react when I send a page",
        "why does my printer refuse to print?",
    ),
    "My screen is flickering.": (
        "the monitor flashes all the time",
        "My display keeps blinking",
        "there is a flicker on my monitor",
        "The picture on my screen is unsteady and flashes",
    ),
    "My system is overheating.": (
        "my laptop gets very hot",
        "The computer is too hot and the fan is loud",
        "my pc shuts down because of heat",
        "what can I do against a hot computer?",
    ),
    "My webcam isn't detected.": (
        "the camera of my laptop is not recognised",
        "No camera found in my video call",
        "windows does not see my webcam",
        "My web camera doesn't show up",
    ),
    "What is a computer?": (
        "can you explain what a computer is?",
        "define computer",
    ),
    "What is a super computer?": (
        "what does supercomputer mean?",
        "explain super computers to me",
    ),
    "Who invented computers?": (
        "who was the inventor of the computer?",
        "which person built computers first?",
    ),
    "What was the first computer": (
        "which was the earliest computer?",
        "tell me the name of the first computer ever built",
    ),
    "What is a microprocessor?": (
        "explain the term microprocessor",
        "what does a microprocessor do?",
    ),
    "What is an operating system?": (
        "what's an OS?",
        "explain operating systems",
    ),
    "Who uses super computers?": (
        "what kind of people need supercomputers?",
        "who works with super computers?",
    ),
    "How does a computer work?": (
        "explain how computers function",
        "in what way does a computer do its job?",
    ),
    "can you write bubble sort?": (
        "show me a bubble sort implementation",
        "bubble sort code please",
    ),
    "can you build a REST API?": (
        "how do I make a REST service?",
        "I need an example of a REST API",
    ),
    "write a SQL query with join": (
        "how do I join two tables in SQL?",
        "show me an SQL join",
    ),
    "can you write a Dockerfile?": (
        "give me an example of a Dockerfile",
        "how do I containerise my app with docker?",
    ),
    "can you write a Kubernetes deployment?": (
        "example of a deployment manifest for kubernetes",
        "show me a k8s deployment yaml",
    ),
    "can you write a binary search tree?": (
        "how do I implement a BST?",
        "code of a binary search tree",
    ),
    "can you write a Fibonacci function?": (
        "how to compute fibonacci numbers in code",
        "function for the fibonacci sequence",
    ),
    "can you write a Bash script?": (
        "show me a simple shell script",
        "example bash script please",
    ),
    "can you write a Makefile?": (
        "what does a makefile look like?",
        "I need a Makefile",
    ),
    "can you write a mock test?": (
        "how do I mock something in a test?",
        "test with a mock object, example",
    ),
}
# Answered nowhere in the default knowledge base; some are near to what is.
OUTSIDE: Sequence[str] = (
    "Where is my parcel?",
    "I want my money back.",
    "How do I cancel my subscription?",
    "Can I pay by invoice?",
    "What are your opening hours?",
    "I would like to speak to a manager.",
    "Do you ship to Canada?",
    "The jacket that I ordered is too small.",
    "How long is the warranty on this vacuum cleaner?",
    "Is the meeting room free on Friday?",
    "My phone fell into the water.",
    "How do I change the ink cartridge of the X200?",
    "What does the premium plan cost?",
    "Please delete my customer account.",
    "Can I return a gift without the receipt?",
    "My keyboard types the wrong letters.",
    "Which graphics card should I buy?",
    "How do I install a second hard disk?",
    "What is the capital of France?",
    "Who won the world cup in 1998?",
    "Tell me a joke.",
    "How do I bake bread?",
    "I feel lonely today.",
    "What is the weather like tomorrow?",
    "Is my data encrypted at rest?",
    "How many vacation days do I have left?",
    "Can you recommend a good restaurant?",
    "The invoice has the wrong address.",
    "Do you have this chair in green?",
    "My car makes a strange noise.",
    "How old is the universe?",
    "When does the next train to Berlin leave?",
    "I was charged twice this month.",
    "How do I clean a coffee machine?",
    "What are the side effects of aspirin?",
    "Which books did Thomas Mann write?",
    "Can I bring my dog to the office?",
    "The app does not accept my coupon.",
    "How do I tie a tie?",
    "Please translate this letter.",
)
