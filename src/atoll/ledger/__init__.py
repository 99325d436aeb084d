"""What outside the process is ours, so that nothing leaks.

entry     a resource, written down before it is acquired, struck off after it is released
owner     whose it is: a sandbox's ID
kind      how a sort of resource is released, looked for and found again
debt      an entry whose release failed; retried in the background until it works
walk      releasing an owner's entries, last entered first: the only clean-up code there is
finding   what `fsck` sees where the ledger and the machine disagree
"""
