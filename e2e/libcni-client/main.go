// A caller of CNI plugins on libcni itself, with cnitool's verbs, environment,
// container IDs and results cache; and, beyond cnitool, the verb VERSION, and a storm
// of pods that are made and removed by one process, as a container runtime does.
//
//	libcni-client add|check|del NETWORK NETNS
//	libcni-client version NETWORK
//	libcni-client storm NETWORK NETNS...
//
// Environment: CNI_PATH; NETCONFPATH, else /etc/cni/net.d; CNI_ARGS as A=B;C=D;
// CAP_ARGS, a JSON object of capability arguments; CNI_IFNAME, else eth0.
package main

import (
	"context"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containernetworking/cni/libcni"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(words []string) error {
	if len(words) < 2 {
		return fmt.Errorf("usage: libcni-client add|check|del|version|storm NETWORK [NETNS...]")
	}
	cni := libcni.NewCNIConfig(filepath.SplitList(os.Getenv("CNI_PATH")), nil)
	verb, network, namespaces := words[0], words[1], words[2:]
	if verb == "storm" {
		return storm(cni, network, namespaces)
	}
	list, err := load(network)
	if err != nil {
		return err
	}
	if verb == "version" {
		return versions(cni, list)
	}
	if len(namespaces) != 1 {
		return fmt.Errorf("%s of which namespace? one path", verb)
	}
	attachment, err := attachmentOf(namespaces[0])
	if err != nil {
		return err
	}
	return call(cni, verb, list, attachment)
}

func load(network string) (*libcni.NetworkConfigList, error) {
	dir := os.Getenv("NETCONFPATH")
	if dir == "" {
		dir = "/etc/cni/net.d"
	}
	return libcni.LoadConfList(dir, network)
}

// attachmentOf is what cnitool makes of its environment and a namespace's path.
func attachmentOf(netns string) (*libcni.RuntimeConf, error) {
	netns, err := filepath.Abs(netns)
	if err != nil {
		return nil, err
	}
	hash := sha512.Sum512([]byte(netns))
	attachment := &libcni.RuntimeConf{
		ContainerID: fmt.Sprintf("cnitool-%x", hash[:10]),
		NetNS:       netns,
		IfName:      os.Getenv("CNI_IFNAME"),
	}
	if attachment.IfName == "" {
		attachment.IfName = "eth0"
	}
	if text := os.Getenv("CAP_ARGS"); text != "" {
		if err := json.Unmarshal([]byte(text), &attachment.CapabilityArgs); err != nil {
			return nil, fmt.Errorf("CAP_ARGS: %w", err)
		}
	}
	if text := os.Getenv("CNI_ARGS"); text != "" {
		for _, pair := range strings.Split(text, ";") {
			key, value, found := strings.Cut(pair, "=")
			if !found {
				return nil, fmt.Errorf("CNI_ARGS: %q has no =", pair)
			}
			attachment.Args = append(attachment.Args, [2]string{key, value})
		}
	}
	return attachment, nil
}

func call(cni *libcni.CNIConfig, verb string, list *libcni.NetworkConfigList, attachment *libcni.RuntimeConf) error {
	ctx := context.Background()
	switch verb {
	case "add":
		result, err := cni.AddNetworkList(ctx, list, attachment)
		if err != nil {
			return err
		}
		return result.Print()
	case "check":
		return cni.CheckNetworkList(ctx, list, attachment)
	case "del":
		return cni.DelNetworkList(ctx, list, attachment)
	}
	return fmt.Errorf("%q is no verb", verb)
}

// versions prints what VERSION says, by plugin, after libcni's own judgement of the list.
func versions(cni *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
	ctx := context.Background()
	if _, err := cni.ValidateNetworkList(ctx, list); err != nil {
		return err
	}
	said := map[string][]string{}
	for _, plugin := range list.Plugins {
		info, err := cni.GetVersionInfo(ctx, plugin.Network.Type)
		if err != nil {
			return fmt.Errorf("%s: %w", plugin.Network.Type, err)
		}
		said[plugin.Network.Type] = info.SupportedVersions()
	}
	return json.NewEncoder(os.Stdout).Encode(said)
}

// storm attaches and detaches each namespace again and again, all of them at once, until
// the end of standard input, and reading the configuration each time. It prints a line
// for each failure, and one with the number of attachments made at the end.
func storm(cni *libcni.CNIConfig, network string, namespaces []string) error {
	end := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(end)
	}()
	var lock sync.Mutex
	made := 0
	report := func(container string, verb string, err error) {
		lock.Lock()
		defer lock.Unlock()
		if err != nil {
			fmt.Printf("%s of %s: %v\n", verb, container, err)
		} else if verb == "add" {
			made++
			if made == len(namespaces) {
				fmt.Println("begun")
			}
		}
	}
	var workers sync.WaitGroup
	for _, netns := range namespaces {
		workers.Add(1)
		go func(netns string) {
			defer workers.Done()
			for turn := 0; ; turn++ {
				select {
				case <-end:
					return
				default:
				}
				container := fmt.Sprintf("%s-%d", filepath.Base(netns), turn)
				cycle(cni, network, &libcni.RuntimeConf{ContainerID: container, NetNS: netns, IfName: "eth0"}, report)
			}
		}(netns)
	}
	workers.Wait()
	fmt.Printf("made %d\n", made)
	return nil
}

// cycle is one pod's life: ADD, CHECK, and DEL whatever came of them.
func cycle(cni *libcni.CNIConfig, network string, attachment *libcni.RuntimeConf, report func(string, string, error)) {
	ctx := context.Background()
	list, err := load(network)
	if err != nil {
		report(attachment.ContainerID, "load", err)
		return
	}
	_, err = cni.AddNetworkList(ctx, list, attachment)
	report(attachment.ContainerID, "add", err)
	if err == nil {
		report(attachment.ContainerID, "check", cni.CheckNetworkList(ctx, list, attachment))
	}
	// As runtimes do: by the configuration of now.
	if now, err := load(network); err != nil {
		report(attachment.ContainerID, "load", err)
	} else {
		list = now
	}
	report(attachment.ContainerID, "del", cni.DelNetworkList(ctx, list, attachment))
}
