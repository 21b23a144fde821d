"""The same network by other engines, bytes to JSON: what a user would take instead, in the same turns.

An engine computes the dense parts, where all the operations are: the trunk (backbone and RPN head), the box head and
the mask head. The rest is the project's own code for each of them: resizing, anchors, NMS, RoIAlign, decoding, run
lengths, and the handler around it. None of these is an engine that is served.
"""
