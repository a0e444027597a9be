"""A team's own topic and shape become run-completed events: the mapping file, and what it makes of a message.

    file      what a mapping file may say (docs/SOURCES.md), and what is wrong with one that says something else
    document  JSON from bytes that nobody vouches for
    fields    one field: a JMESPath expression, a constant, a header, or a function
    turns     one foreign message of a conversation, in any of the common shapes, as an OpenAI chat message
    objects   what lies outside of the event: URLs inside an allowed prefix, and how they are read
    event     the whole: a message of their topic → the run-completed event, a function of the message alone
    draft     a first mapping from a sample
    explain   the same, told field by field to whoever writes a mapping

Everything but `objects.fetch` is pure. A mapping is written by an operator and trusted; what it is given is not.
"""
