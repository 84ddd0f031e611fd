// A device guard that does nothing, for the kind of device that tests/support/pretended_gpu.py pretends: torch asks for one.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace c10::impl {

C10_REGISTER_GUARD_IMPL(Lazy, NoOpDeviceGuardImpl<DeviceType::Lazy>)

}  // namespace c10::impl
