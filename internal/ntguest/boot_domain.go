package ntguest

import (
	"encoding/xml"
	"errors"
	"fmt"
)

// Domain describes a libvirt domain of the guest.
type Domain struct {
	Name      string // of the domain
	Type      string // "qemu" (software emulation) or "kvm"; "" for "qemu"
	Machine   string // "q35" or "pc"; "" for "q35"
	Kernel    string // path of the ELF file that WriteKernel wrote
	MemoryMiB uint64 // as in Options
	LA57      bool   // as in Options: a processor with 5-level paging
	// ConsoleLog is a file that receives what the guest says; ConsoleSocket a UNIX
	// socket, made by QEMU, for its console. Without a socket it is a terminal.
	ConsoleLog    string
	ConsoleSocket string
}

type domainXML struct {
	XMLName  xml.Name   `xml:"domain"`
	Type     string     `xml:"type,attr"`
	Name     string     `xml:"name"`
	Memory   domainSize `xml:"memory"`
	VCPU     int        `xml:"vcpu"`
	OS       domainOS   `xml:"os"`
	Features struct {
		ACPI struct{} `xml:"acpi"`
		APIC struct{} `xml:"apic"`
	} `xml:"features"`
	CPU     *domainCPU    `xml:"cpu"`
	Devices domainDevices `xml:"devices"`
}

type domainCPU struct {
	Mode string `xml:"mode,attr"`
}

type domainSize struct {
	Unit  string `xml:"unit,attr"`
	Value uint64 `xml:",chardata"`
}

type domainOS struct {
	Type struct {
		Arch    string `xml:"arch,attr"`
		Machine string `xml:"machine,attr"`
		Value   string `xml:",chardata"`
	} `xml:"type"`
	Kernel string `xml:"kernel"`
}

type domainDevices struct {
	Controller struct {
		Type  string `xml:"type,attr"`
		Model string `xml:"model,attr"`
	} `xml:"controller"`
	Serial  domainSerial `xml:"serial"`
	Balloon struct {
		Model string `xml:"model,attr"`
	} `xml:"memballoon"`
}

type domainSerial struct {
	Type   string        `xml:"type,attr"`
	Source *domainSource `xml:"source"`
	Log    *domainLog    `xml:"log"`
}

type domainSource struct {
	Mode string `xml:"mode,attr"`
	Path string `xml:"path,attr"`
}

type domainLog struct {
	File   string `xml:"file,attr"`
	Append string `xml:"append,attr"`
}

// XML returns the domain's definition, which virsh create and virsh define accept.
func (d Domain) XML() ([]byte, error) {
	if d.Name == "" || d.Kernel == "" {
		return nil, errors.New("a domain needs a name and a kernel")
	}
	x := domainXML{Type: d.Type, Name: d.Name, VCPU: ncpu, Memory: domainSize{Unit: "MiB", Value: d.MemoryMiB}}
	if x.Type == "" {
		x.Type = "qemu"
	}
	if x.Memory.Value == 0 {
		x.Memory.Value = 512
	}
	x.OS.Type.Arch, x.OS.Type.Machine, x.OS.Type.Value = "x86_64", d.Machine, "hvm"
	if d.Machine == "" {
		x.OS.Type.Machine = "q35"
	}
	x.OS.Kernel = d.Kernel
	if d.LA57 {
		x.CPU = &domainCPU{Mode: "maximum"}
	}
	x.Devices.Controller.Type, x.Devices.Controller.Model = "usb", "none"
	x.Devices.Balloon.Model = "none"
	x.Devices.Serial.Type = "pty"
	if d.ConsoleSocket != "" {
		x.Devices.Serial.Type = "unix"
		x.Devices.Serial.Source = &domainSource{Mode: "bind", Path: d.ConsoleSocket}
	}
	if d.ConsoleLog != "" {
		x.Devices.Serial.Log = &domainLog{File: d.ConsoleLog, Append: "off"}
	}
	out, err := xml.MarshalIndent(x, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write definition of domain %s: %w", d.Name, err)
	}
	return append(out, '\n'), nil
}
