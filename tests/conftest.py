"""What all tests begin with."""

import signal

# A shell lets what it starts in the background ignore Ctrl-C, and so would the commands whose interruption is tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
