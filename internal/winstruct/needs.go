package winstruct

// The structures, enumerations and symbols in the built-in profiles, as far as a build has
// them: those that the readers of the project declare, and those that a person looks at
// first.
var (
	packStructs = []string{
		"_CLIENT_ID", "_CONTROL_AREA", "_CURDIR", "_DBGKD_GET_VERSION64", "_DISPATCHER_HEADER", "_DRIVER_OBJECT",
		"_EPROCESS", "_ETHREAD", "_EWOW64PROCESS", "_EX_FAST_REF", "_EX_PUSH_LOCK", "_EX_RUNDOWN_REF", "_FILE_OBJECT",
		"_GUID", "_HANDLE_TABLE", "_HANDLE_TABLE_ENTRY", "_KDDEBUGGER_DATA64", "_KDESCRIPTOR", "_KLDR_DATA_TABLE_ENTRY",
		"_KIDTENTRY64", "_KPCR", "_KPRCB", "_KPROCESS", "_KPROCESSOR_STATE", "_KSPECIAL_REGISTERS", "_KSYSTEM_TIME",
		"_KTHREAD", "_KTRAP_FRAME", "_KUSER_SHARED_DATA", "_LARGE_INTEGER", "_LDR_DATA_TABLE_ENTRY", "_LIST_ENTRY", "LIST_ENTRY64", "LIST_ENTRY32",
		"_MI_HARDWARE_STATE", "_MI_SYSTEM_INFORMATION", "_MMADDRESS_NODE", "_MMPTE", "_MMPTE_HARDWARE", "_MMPTE_PROTOTYPE",
		"_MMPTE_SOFTWARE", "_MMPTE_SUBSECTION", "_MMPTE_TRANSITION", "_MMSECTION_FLAGS", "_MMVAD", "_MMVAD_FLAGS", "_MMVAD_FLAGS1", "_MMVAD_FLAGS2",
		"_MMVAD_LONG", "_MMVAD_SHORT", "_MM_AVL_NODE", "_MM_AVL_TABLE", "_MM_SESSION_SPACE", "_MSUBSECTION",
		"_OBJECT_ATTRIBUTES", "_OBJECT_DIRECTORY", "_OBJECT_DIRECTORY_ENTRY", "_OBJECT_HEADER", "_OBJECT_HEADER_CREATOR_INFO",
		"_OBJECT_HEADER_HANDLE_INFO", "_OBJECT_HEADER_NAME_INFO", "_OBJECT_HEADER_PROCESS_INFO", "_OBJECT_HEADER_QUOTA_INFO",
		"_OBJECT_NAME_INFORMATION", "_OBJECT_TYPE", "_OBJECT_TYPE_INITIALIZER", "_SEGMENT_FLAGS", "_KAPC_STATE", "_TERMINATION_PORT", "_SUBSECTION_FLAGS",
		"_MMSUBSECTION_FLAGS", "_KTSS64", "_SID_AND_ATTRIBUTES", "_LUID", "_SID", "_MMSUPPORT_FULL", "_HARDWARE_PTE", "_KIDTENTRY64", "_PEB", "_PEB32",
		"_PEB_LDR_DATA", "_POOL_HEADER", "_PS_PROTECTION",
		"_RTL_AVL_TREE", "_RTL_BALANCED_NODE", "_RTL_USER_PROCESS_PARAMETERS", "_SECTION", "_SECTION_OBJECT",
		"_SECTION_OBJECT_POINTERS", "_SEGMENT", "_SEP_TOKEN_PRIVILEGES", "_SE_AUDIT_PROCESS_CREATION_INFO", "_SHARED_CACHE_MAP",
		"_SINGLE_LIST_ENTRY", "_STRING", "_SUBSECTION", "_TEB", "_TEB32", "_TOKEN", "_UNICODE_STRING", "_VACB",
		"_ULARGE_INTEGER", "_NT_TIB", "_NT_TIB64", "_KGDTENTRY64", "_KTSS64",
	}
	packEnums = []string{"_MI_VAD_TYPE", "_PS_PROTECTED_TYPE", "_PS_PROTECTED_SIGNER", "_KTHREAD_STATE", "_POOL_TYPE", "_SYSTEM_DLL_TYPE"}

	packSymbols = []string{
		"CmNtCSDVersion", "HandleTableListHead", "IopRootDeviceNode", "KdDebuggerDataBlock", "KdVersionBlock", "KdpDataBlockEncoded",
		"KeNumberProcessors", "KiBreakpointTrap", "KiBreakpointTrapShadow", "KiDivideErrorFault", "KiDivideErrorFaultShadow",
		"KiInitialPCR", "KiInitialProcess", "KiKvaShadow", "KiKvaShadowMode", "KiPageFault", "KiPageFaultShadow", "KiProcessorBlock",
		"KiSystemCall32", "KiSystemCall32Shadow", "KiSystemCall64", "KiSystemCall64Shadow", "KiSystemServiceExit", "KiSystemServiceUser",
		"KiWaitAlways", "KiWaitNever", "MiState", "MiVisibleState", "MmHighestUserAddress", "MmNonPagedPoolStart", "MmPagedPoolEnd", "MmPfnDatabase",
		"MmPhysicalMemoryBlock",
		"MmProtectToValue", "MmSessionSpace", "MmSystemRangeStart", "MmUnloadedDrivers", "MmUserProbeAddress", "NtBuildGUID", "NtBuildLab", "NtBuildLabEx",
		"NtBuildNumber",
		"NtMajorVersion", "NtMinorVersion", "ObHeaderCookie", "ObTypeIndexTable", "ObpInfoMaskToOffset", "ObpRootDirectoryObject", "ObpTypeDirectoryObject",
		"PoolBigPageTable", "PoolBigPageTableSize", "PsActiveProcessHead", "PsIdleProcess", "PsInitialSystemProcess", "PsLoadedModuleList",
		"PsLoadedModuleResource", "DbgPrint", "ExAllocatePoolWithTag", "ExFreePoolWithTag", "IoCreateDevice", "IofCompleteRequest", "KeBugCheckEx",
		"KeInitializeEvent", "KeSetEvent", "KeWaitForSingleObject", "MmGetSystemRoutineAddress", "MmMapIoSpace", "NtClose", "NtCreateFile", "NtOpenProcess",
		"NtQuerySystemInformation", "NtReadFile", "NtTerminateProcess", "ObReferenceObjectByHandle", "ObfDereferenceObject", "PsGetCurrentProcessId",
		"PsGetProcessId", "PsLookupProcessByProcessId", "PsSetCreateProcessNotifyRoutine", "RtlInitUnicodeString", "ZwClose", "ZwCreateFile", "memcpy",
		"memset", "PspCidTable", "PspProcessMitigation", "SeAuditingState", "ValidationBits",
	}
)

// Pack returns the part of p that belongs into a built-in profile.
func Pack(p *Profile) *Profile { return p.Trim(packStructs, packEnums, packSymbols) }
