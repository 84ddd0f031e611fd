"""Pure PyTorch specification of every native op: same signature, same parameter layout, any order of derivative.

That of trace_sdf_network is the wavefront tracer, nsr.ops.sphere_trace.trace, around sdf_network.
"""
