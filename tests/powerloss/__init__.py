"""Power loss: what a program writes is recorded, and every disk that a loss of power may leave is started from.

trace      runs a program below strace(1) and gives back what it did to the files of one folder
disk       what of that is durable when, and which disks a loss of power may leave
workload   programs that change the stores and say what they were told is durable
startup    starts the stores from such a disk and says what is there
run        all of it, for the test and for a person: `python -m tests.powerloss.run`
"""
