{{- define "longshore.selector" -}}
app.kubernetes.io/name: longshore
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "longshore.labels" -}}
{{ include "longshore.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "longshore.name" -}}
{{ eq .Release.Name "longshore" | ternary "longshore-operator" (printf "%s-longshore-operator" .Release.Name) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* What the operator does in the namespaces it watches; nothing else. */ -}}
{{- define "longshore.rules" -}}
- apiGroups: [longshore.dev]
  resources: [ordershardsets, servicefleets, kafkatopicsets]
  verbs: [list, watch, patch] # patch: their finalizers
- apiGroups: [longshore.dev]
  resources: [ordershardsets/status, servicefleets/status, kafkatopicsets/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [secrets, configmaps]
  verbs: [get, list, watch] # get: those that are named; list, watch: metadata alone, so that pods follow their changes
# What fleets are made of. Create and patch are how it is applied; get: what lost the label that it is watched by.
- apiGroups: [""]
  resources: [serviceaccounts, services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
