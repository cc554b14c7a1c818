# The output of `kubectl get nodes --output json` of a cluster with flannel (vxlan) as a
# node map in which every node has the VTEP that flannel gave it: its address and MAC.
{
  nodes: [
    .items[]
    | (.metadata.annotations // {}) as $noted
    | ($noted["flannel.alpha.coreos.com/backend-data"] // "null" | fromjson) as $vtep
    | {
        name: .metadata.name,
        addresses: [.status.addresses[] | select(.type == "InternalIP") | .address],
        podCIDRs: (.spec.podCIDRs // []),
        tunnelAddress: $noted["flannel.alpha.coreos.com/public-ip"],
        vtepMAC: $vtep.VtepMAC
      }
    | with_entries(select(.value != null))
  ]
}
